"""generate.py as a user runs it: what it prints, and what it refuses."""

import json
import shutil

import pytest
import torch
from transformers import AutoTokenizer

from pipeline.attention.window import WindowSpec
from pipeline.model.loading import load_model, set_window
from tests.launchers.conftest import launch

PROMPT = "def evaluate(model, documents):\n    for document in documents:\n        yield document.score(model)\n"


def greedy(tiny, window: WindowSpec | None, new_tokens: int) -> str:
    """The continuation that the library gives, without cache, one whole forward a token."""
    model = load_model(str(tiny.adapter), dtype=torch.float32).eval()
    if window is not None:
        set_window(model, window)
    tokenizer = AutoTokenizer.from_pretrained(tiny.base)
    tokens = tokenizer(PROMPT, return_tensors="pt").input_ids
    length = tokens.shape[1]
    with torch.no_grad():
        for _ in range(new_tokens):
            tokens = torch.cat([tokens, model(tokens, use_cache=False).logits[:, -1:].argmax(-1)], dim=1)
    return tokenizer.decode(tokens[0, length:], skip_special_tokens=True)


@pytest.mark.slow
@pytest.mark.parametrize("flags", [(), ("--num_sink_tokens", 2, "--window_size", 30)])
def test_greedy_text_is_the_models_own_with_the_window_that_was_asked_for(tiny, flags) -> None:
    window = WindowSpec(2, 30) if flags else None
    asked = ("--model", tiny.adapter, "--prompt", PROMPT, "--max_new_tokens", 24, *flags)
    done = launch("generate.py", *asked, anew=not flags)
    assert done.returncode == 0, done.stderr
    assert done.stdout.rstrip("\n") == greedy(tiny, window, 24).rstrip("\n")
    assert "tokens in the memory" in done.stderr


def test_window_flags_change_the_text(tiny) -> None:
    assert greedy(tiny, WindowSpec(2, 30), 24) != greedy(tiny, None, 24)


@pytest.mark.slow
def test_a_document_is_absorbed_once_and_asked_later(tiny, tmp_path) -> None:
    document, question = PROMPT * 2, " assert model(documents)"
    model, cache = ["--model", tiny.adapter], tmp_path / "document.cache"
    window = ["--num_sink_tokens", 2, "--window_size", 30]
    absorbed = launch("generate.py", *model, *window, "--prompt", document, "--save_cache", cache, "--prefill_chunk", 7)
    assert absorbed.returncode == 0, absorbed.stderr
    asked = ["--prompt", question, "--max_new_tokens", 16]
    answers = [launch("generate.py", *model, "--load_cache", cache, *asked) for _ in range(2)]
    whole = launch("generate.py", *model, *window, "--prompt", document + question, "--max_new_tokens", 16)
    assert answers[0].stdout == answers[1].stdout == whole.stdout != "", answers[0].stderr
    refused = launch("generate.py", "--model", tiny.base, *asked, "--save_cache", cache)
    assert refused.returncode == 2 and "plain base" in refused.stderr


@pytest.mark.slow
def test_reads_stdin_and_samples_by_the_seed(tiny) -> None:
    flags = (
        "--model",
        tiny.adapter,
        "--max_new_tokens",
        12,
        "--temperature",
        1.0,
        "--top_p",
        0.9,
        "--seed",
        4,
    )
    first, second = (launch("generate.py", *flags, stdin=PROMPT) for _ in range(2))
    assert first.returncode == 0, first.stderr
    assert first.stdout == second.stdout != ""


def test_chat_needs_a_template_and_uses_it(tiny, tmp_path) -> None:
    flags = ("--model", tiny.adapter, "--chat", "--max_new_tokens", 8)
    done = launch("generate.py", *flags, "--prompt", PROMPT)
    assert done.returncode == 2 and "has no chat template" in done.stderr
    base = tmp_path / "base"
    shutil.copytree(tiny.base, base)
    settings = json.loads((base / "tokenizer_config.json").read_text())
    template = "{% for message in messages %}user: {{ message.content }} answer:{% endfor %}"
    (base / "tokenizer_config.json").write_text(json.dumps(settings | {"chat_template": template}))
    chat = launch("generate.py", *flags, "--base", base, "--prompt", PROMPT)
    assert chat.returncode == 0, chat.stderr
    tokenizer = AutoTokenizer.from_pretrained(base)
    wrapped = tokenizer(f"user: {PROMPT.strip()} answer:", add_special_tokens=False).input_ids
    assert abs(int(chat.stderr.strip().splitlines()[-1].split()[0]) - len(wrapped)) <= 2


def test_refuses_what_cannot_work_in_one_line(tiny, refused, tmp_path) -> None:
    assert "no such folder" in refused("generate.py", "--model", tmp_path / "nothing", "--prompt", "x")
    assert "neither ahn_config.json" in refused("generate.py", "--model", tmp_path, "--prompt", "x")
    model = ("--model", tiny.adapter)
    assert "the prompt is empty" in refused("generate.py", *model, stdin=" \n")
    assert str(tmp_path / "p.txt") in refused("generate.py", *model, "--prompt_file", tmp_path / "p.txt")
    both = ("--prompt", "x", "--prompt_file", "y")
    assert "give only one" in refused("generate.py", *model, *both)
    assert "--window_size: must be >= 1" in refused("generate.py", *model, "--prompt", "x", "--window_size", 0)
    assert "--top_p 0.5 has no effect" in refused("generate.py", *model, "--prompt", "x", "--top_p", 0.5)
    plain = ("--model", tiny.base, "--prompt", "x", "--window_size", 8)
    assert "plain base, which has no window" in refused("generate.py", *plain)


def test_an_adapter_without_its_base_names_the_flag(tiny, refused, tmp_path) -> None:
    settings = json.loads((tiny.adapter / "ahn_config.json").read_text())
    lost = tmp_path / "lost"
    lost.mkdir()
    (lost / "ahn_config.json").write_text(json.dumps(settings | {"base_model": "/gone/base"}))
    message = refused("generate.py", "--model", lost, "--prompt", "x")
    assert "/gone/base" in message and "--base" in message
    message = refused("generate.py", "--model", lost, "--prompt", "x", "--base", tmp_path)
    assert f"--base {tmp_path}" in message
