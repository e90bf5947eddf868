"""Continues a prompt with an AHN model; the text goes to stdout while it is generated, figures to stderr.

python launchers/generate.py --model RUN/adapter --prompt "def quicksort(items):" --max_new_tokens 64
python launchers/generate.py --model RUN/adapter --prompt_file book.txt --window_size 1920 --num_retained_tokens 256
cat notes.txt | python launchers/generate.py --model MERGED --chat
python launchers/generate.py --model RUN/adapter --prompt_file book.txt --save_cache book.cache     # absorb once,
python launchers/generate.py --model RUN/adapter --load_cache book.cache --prompt "Who did it?"     # ask often
"""

import io
import os
import sys
import textwrap
import time
from typing import TYPE_CHECKING, Any

from pipeline.attention.window import WindowSpec
from pipeline.config import GenerateConfig, parse_cli
from pipeline.errors import UserError, escape_controls, run_cli
from pipeline.model.files import ModelFiles, find_tokenizer_json, resolve_model

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def read_prompt(config: GenerateConfig) -> str:
    """The prompt from whichever place it was given.

    Raises:
        UserError: the file is missing or not UTF-8, or the prompt is empty.
    """
    source = "--prompt" if config.prompt is not None else f"--prompt_file {config.prompt_file}"
    try:
        if config.prompt is not None:
            prompt = config.prompt
            prompt.encode("utf-8")
        elif config.prompt_file is not None:
            prompt = config.prompt_file.read_text(encoding="utf-8")
        else:
            source = "stdin"
            prompt = io.TextIOWrapper(sys.stdin.buffer, encoding="utf-8").read()  # whatever the locale is
    except (OSError, UnicodeError) as error:
        raise UserError(f"{source} cannot be read: {error}") from error
    if not prompt.strip():
        raise UserError(f"{source}: the prompt is empty; give --prompt, --prompt_file or text on stdin")
    return prompt


def check_files(config: GenerateConfig, files: ModelFiles) -> WindowSpec | None:
    """Looks at what needs no model; returns the window, None for a plain base.

    Raises:
        UserError: a cache for a plain base, or one that is not there or has no folder to go to; a window that the
            model cannot have; no tokenizer.
    """
    window = files.choose_window(config.num_sink_tokens, config.window_size, config.num_retained_tokens)
    for flag, path in (("--save_cache", config.save_cache), ("--load_cache", config.load_cache)):
        if path is not None and window is None:
            raise UserError(f"{flag} {path}: --model {config.model} is a plain base, whose cache grows with the text")
    save, load = config.save_cache, config.load_cache
    if save is not None and (save.is_dir() or not os.access(save.parent, os.W_OK)):
        problem = "is a folder" if save.is_dir() else f"{save.parent} is no folder that can be written"
        raise UserError(f"--save_cache {save}: {problem}; name a file in one that is there")
    if load is not None and not load.is_file():
        raise UserError(f"--load_cache {load}: no such file; --save_cache writes one")
    find_tokenizer_json(files.tokenizer)
    return window


def wrap_in_chat(prompt: str, tokenizer: "PreTrainedTokenizerBase", name: str) -> str:
    """The prompt as one user message.

    Raises:
        UserError: there is no chat template, or it fails.
    """
    if tokenizer.chat_template is None:
        raise UserError(f"--chat: the tokenizer of {name} has no chat template; leave the flag out")
    message = [{"role": "user", "content": prompt}]
    try:
        return tokenizer.apply_chat_template(message, add_generation_prompt=True, tokenize=False)
    except Exception as error:  # a template is code
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise UserError(
            f"--chat: the chat template of {name} does not take one user message alone ({reason}); leave the flag out "
            f"and write the prompt as the model expects it"
        ) from error


def describe_settings(config: GenerateConfig, not_done: dict[str, Any]) -> str:
    """What is in force while the text is generated, in one line."""
    if config.temperature == 0:
        decoding = "greedy"
    else:
        decoding = f"sampling at temperature {config.temperature}, top_p {config.top_p}, seed {config.seed}"
    others = ", ".join(f"{name} {textwrap.shorten(str(value), 40)}" for name, value in not_done.items())
    others = escape_controls(others)
    return f"{decoding}, at most {config.max_new_tokens} tokens" + (
        f"; not in force, of the base's generation_config: {others}" if others else ""
    )


def main() -> None:
    config = parse_cli(GenerateConfig)
    files = resolve_model(config.model, config.base)
    window = check_files(config, files)
    prompt = read_prompt(config)

    import torch
    from transformers import TextStreamer

    from pipeline.distributed.device import choose_device
    from pipeline.evaluation.placement import choose_dtype
    from pipeline.model.cache_file import load_cache, save_cache
    from pipeline.model.generation import absorb, decide_generation
    from pipeline.model.loading import load_model, set_window
    from pipeline.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(files.tokenizer)
    if config.chat:
        prompt = wrap_in_chat(prompt, tokenizer, files.tokenizer)
    add_special_tokens = not config.chat and config.load_cache is None  # a text that goes on has no second beginning
    input_ids = tokenizer(prompt, return_tensors="pt", add_special_tokens=add_special_tokens).input_ids
    if input_ids.shape[1] == 0:
        raise UserError(f"the tokenizer of {files.tokenizer} makes no token of the prompt; give another one")
    device = choose_device()
    model = load_model(
        str(files.folder), dtype=choose_dtype(config.dtype, device), base=files.base, check=config.check_base
    )
    model.eval().to(device)
    input_ids = input_ids.to(device)
    if window is not None:
        set_window(model, window)
    started = time.perf_counter()
    if config.save_cache is not None:
        save_cache(absorb(model, input_ids, config.prefill_chunk), model, config.save_cache)
        print(f"{config.save_cache}: {input_ids.shape[1]} tokens in {time.perf_counter() - started:.1f} s")
        return
    cache = None if config.load_cache is None else load_cache(config.load_cache, model)
    num_absorbed = 0 if cache is None else cache.get_seq_length()
    num_prompt = num_absorbed + input_ids.shape[1]
    not_done = decide_generation(model, config.temperature, config.top_p)
    print(describe_settings(config, not_done), file=sys.stderr, flush=True)
    torch.manual_seed(config.seed)
    output = model.generate(
        input_ids,
        attention_mask=torch.ones(1, num_prompt, dtype=torch.int64, device=device),
        past_key_values=cache,
        prefill_chunk_size=config.prefill_chunk,
        max_new_tokens=config.max_new_tokens,
        streamer=TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True),
    )
    seconds = time.perf_counter() - started
    num_new = output.shape[1] - input_ids.shape[1]
    window = window if cache is None else cache.window
    in_memory = 0 if window is None else window.num_evicted(num_prompt + num_new)
    kept = "full attention" if window is None else f"{window}, {in_memory} tokens in the memory"
    print(f"{num_prompt} + {num_new} tokens in {seconds:.1f} s; {kept}", file=sys.stderr)


if __name__ == "__main__":
    run_cli(main)
