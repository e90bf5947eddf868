"""Continues a prompt with an AHN model; the text goes to stdout while it is generated, figures to stderr.

python launchers/generate.py --model RUN/adapter --prompt "def quicksort(items):" --max_new_tokens 64
python launchers/generate.py --model RUN/adapter --prompt_file book.txt --window_size 1920
cat notes.txt | python launchers/generate.py --model MERGED --chat
python launchers/generate.py --model RUN/adapter --prompt_file book.txt --save_cache book.cache     # absorb once,
python launchers/generate.py --model RUN/adapter --load_cache book.cache --prompt "Who did it?"     # ask often
"""

import sys
import time

from pipeline.config import GenerateConfig, parse_cli
from pipeline.errors import UserError, run_cli
from pipeline.model.files import find_tokenizer_json, resolve_model


def read_prompt(config: GenerateConfig) -> str:
    """The prompt from whichever place it was given.

    Raises:
        UserError: the file is missing or not UTF-8, or the prompt is empty.
    """
    source = "--prompt" if config.prompt is not None else f"--prompt_file {config.prompt_file}"
    try:
        if config.prompt is not None:
            prompt = config.prompt
        elif config.prompt_file is not None:
            prompt = config.prompt_file.read_text(encoding="utf-8")
        else:
            source, prompt = "stdin", sys.stdin.read()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{source} cannot be read: {error}") from error
    if not prompt.strip():
        raise UserError(f"{source}: the prompt is empty; give --prompt, --prompt_file or text on stdin")
    return prompt


def main() -> None:
    config = parse_cli(GenerateConfig)
    files = resolve_model(config.model, config.base)
    window = files.choose_window(config.num_sink_tokens, config.window_size)
    for flag, path in (("--save_cache", config.save_cache), ("--load_cache", config.load_cache)):
        if path is not None and window is None:
            raise UserError(f"{flag} {path}: --model {config.model} is a plain base, whose cache grows with the text")
    find_tokenizer_json(files.tokenizer)
    prompt = read_prompt(config)

    import torch
    from transformers import AutoTokenizer, TextStreamer

    from pipeline.evaluation.placement import choose_device, choose_dtype
    from pipeline.model.cache_file import load_cache, save_cache
    from pipeline.model.generation import absorb
    from pipeline.model.loading import load_model, set_window

    tokenizer = AutoTokenizer.from_pretrained(files.tokenizer)
    if config.chat and tokenizer.chat_template is None:
        raise UserError(f"--chat: the tokenizer of {files.tokenizer} has no chat template; leave the flag out")
    if config.chat:
        message = [{"role": "user", "content": prompt}]
        prompt = tokenizer.apply_chat_template(message, add_generation_prompt=True, tokenize=False)
    torch.manual_seed(config.seed)
    device = choose_device()
    model = load_model(
        str(files.folder), dtype=choose_dtype(config.dtype, device), base=files.base, check=config.check_base
    )
    model.eval().to(device)
    if window is not None:
        set_window(model, window)
    add_special_tokens = not config.chat and config.load_cache is None  # a text that goes on has no second beginning
    input_ids = tokenizer(prompt, return_tensors="pt", add_special_tokens=add_special_tokens).input_ids.to(device)
    started = time.perf_counter()
    if config.save_cache is not None:
        save_cache(absorb(model, input_ids, config.prefill_chunk), model, config.save_cache)
        print(f"{config.save_cache}: {input_ids.shape[1]} tokens in {time.perf_counter() - started:.1f} s")
        return
    cache = None if config.load_cache is None else load_cache(config.load_cache, model)
    num_absorbed = 0 if cache is None else cache.get_seq_length()
    num_prompt = num_absorbed + input_ids.shape[1]
    sampling = {"temperature": config.temperature, "top_p": config.top_p} if config.temperature > 0 else {}
    output = model.generate(
        input_ids,
        attention_mask=torch.ones(1, num_prompt, dtype=torch.int64, device=device),
        past_key_values=cache,
        prefill_chunk_size=config.prefill_chunk,
        max_new_tokens=config.max_new_tokens,
        do_sample=config.temperature > 0,
        streamer=TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True),
        **sampling,
    )
    seconds = time.perf_counter() - started
    num_new = output.shape[1] - input_ids.shape[1]
    window = window if cache is None else cache.window
    in_memory = 0 if window is None else window.num_evicted(num_prompt + num_new)
    kept = "full attention" if window is None else f"{window}, {in_memory} tokens in the memory"
    print(f"{num_prompt} + {num_new} tokens in {seconds:.1f} s; {kept}", file=sys.stderr)


if __name__ == "__main__":
    run_cli(main)
