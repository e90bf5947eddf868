"""Continues a prompt with an AHN model; the text goes to stdout while it is generated, figures to stderr.

python launchers/generate.py --model RUN/adapter --prompt "def quicksort(items):" --max_new_tokens 64
python launchers/generate.py --model RUN/adapter --prompt_file book.txt --window_size 1920
cat notes.txt | python launchers/generate.py --model MERGED --chat
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
    find_tokenizer_json(files.tokenizer)
    prompt = read_prompt(config)

    import torch
    from transformers import AutoTokenizer, TextStreamer

    from pipeline.evaluation.placement import choose_device, choose_dtype
    from pipeline.model.loading import load_model, set_window

    tokenizer = AutoTokenizer.from_pretrained(files.tokenizer)
    if config.chat and tokenizer.chat_template is None:
        raise UserError(f"--chat: the tokenizer of {files.tokenizer} has no chat template; leave the flag out")
    if config.chat:
        message = [{"role": "user", "content": prompt}]
        prompt = tokenizer.apply_chat_template(message, add_generation_prompt=True, tokenize=False)
    torch.manual_seed(config.seed)
    device = choose_device()
    model = load_model(str(files.folder), dtype=choose_dtype(config.dtype, device), base=files.base)
    model.eval().to(device)
    if window is not None:
        set_window(model, window)
    inputs = tokenizer(prompt, return_tensors="pt", add_special_tokens=not config.chat).to(device)
    sampling = {"temperature": config.temperature, "top_p": config.top_p} if config.temperature > 0 else {}
    started = time.perf_counter()
    output = model.generate(
        **inputs,
        max_new_tokens=config.max_new_tokens,
        do_sample=config.temperature > 0,
        streamer=TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True),
        **sampling,
    )
    seconds = time.perf_counter() - started
    length, new_tokens = output.shape[1], output.shape[1] - inputs["input_ids"].shape[1]
    kept = "full attention" if window is None else f"{window}, {window.num_evicted(length)} tokens in the memory"
    print(f"{length - new_tokens} + {new_tokens} tokens in {seconds:.1f} s; {kept}", file=sys.stderr)


if __name__ == "__main__":
    run_cli(main)
