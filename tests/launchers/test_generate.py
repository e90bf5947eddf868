"""generate.py as a user runs it: what it prints, and what it refuses."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from pipeline.attention.window import WindowSpec
from pipeline.model.loading import load_model, set_window
from tests.launchers.conftest import REPOSITORY, launch
from tests.tiny_models import TINY_WINDOW, make_adapter

PROMPT = "def evaluate(model, documents):\n    for document in documents:\n        yield document.score(model)\n"


def greedy(tiny, window: WindowSpec | None, new_tokens: int, model: Path | None = None) -> str:
    """The continuation that the library gives, without cache, one whole forward a token."""
    model = load_model(str(model or tiny.adapter), dtype=torch.float32).eval()
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


@pytest.fixture(scope="module")
def scored(tiny, tmp_path_factory) -> Path:
    """An adapter with scorers, which retains 6 tokens and decides on 3 at a time."""
    window = replace(TINY_WINDOW, num_retained_tokens=6, decision_interval=3)
    return make_adapter(tmp_path_factory.mktemp("scored") / "adapter", tiny.base, window)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "asked"),
    [
        ((), {}),
        (("--num_retained_tokens", 11, "--window_size", 9), {"num_retained_tokens": 11, "window_size": 9}),
        (("--num_retained_tokens", 0), {"num_retained_tokens": 0, "decision_interval": 1}),
    ],
)
def test_as_many_tokens_are_retained_as_were_asked_for(tiny, scored, flags, asked) -> None:
    window = replace(TINY_WINDOW, **{"num_retained_tokens": 6, "decision_interval": 3} | asked)
    done = launch("generate.py", "--model", scored, "--prompt", PROMPT, "--max_new_tokens", 24, *flags)
    assert done.returncode == 0, done.stderr
    assert done.stdout.rstrip("\n") == greedy(tiny, window, 24, scored).rstrip("\n")
    assert str(window) in done.stderr
    texts = {
        greedy(tiny, replace(TINY_WINDOW, num_retained_tokens=m, decision_interval=3 if m else 1), 24, scored)
        for m in (0, 6, 11)
    }
    assert len(texts) == 3


OF_THE_BASE = {
    "do_sample": True, "temperature": 0.3, "top_k": 2, "top_p": 0.4, "min_p": 0.5, "repetition_penalty": 3.0,
    "no_repeat_ngram_size": 1, "num_beams": 3, "suppress_tokens": list(range(2, 200)), "use_cache": False,
    "cache_implementation": "static", "max_length": 9, "min_new_tokens": 3, "eos_token_id": 1,
}  # fmt: skip


def base_with(tiny, folder, generation_config=None, **settings) -> Path:
    """A copy of the base with other settings in its files."""
    shutil.copytree(tiny.base, folder)
    if generation_config is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation_config))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | settings))
    return folder


@pytest.mark.slow
def test_the_command_line_wins_over_the_bases_generation_config(tiny, tmp_path) -> None:
    base = base_with(tiny, tmp_path / "base", OF_THE_BASE, use_cache=False)
    asked = ("--prompt", PROMPT, "--max_new_tokens", 24)
    for model, library in ((("--model", tiny.adapter, "--base", base), None), (("--model", base), tiny.base)):
        done = launch("generate.py", *model, *asked)
        assert done.returncode == 0, done.stderr
        assert done.stdout.rstrip("\n") == greedy(tiny, None, 24, library).rstrip("\n")
        settings = done.stderr[
            done.stderr.index("greedy, at most 24 tokens; not in force, of the base's") :
        ].splitlines()[0]
        for name in ("repetition_penalty 3.0", "num_beams 3", "no_repeat_ngram_size 1", "top_k 2"):
            assert name in settings
    sampling = ("--temperature", 2.0, "--top_p", 0.9, "--seed", 5)
    plain, told = (
        launch("generate.py", "--model", tiny.adapter, *base_flags, *asked, *sampling)
        for base_flags in ((), ("--base", base))
    )
    assert "sampling at temperature 2.0, top_p 0.9, seed 5, at most 24 tokens; not in force" in told.stderr
    assert plain.stdout == told.stdout != "", told.stderr


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


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ raise_exception('needs a system message') }}", "needs a system message"),
        ("{% for m in messages %}{{ m.content.parts[0] }}{% endfor %}", "UndefinedError"),
        ("{% for m in %}", "TemplateSyntaxError"),
        ("{{ 1 // 0 }}", "ZeroDivisionError"),
    ],
)
def test_a_chat_template_that_fails_is_one_line(tiny, tmp_path, template, reason) -> None:
    base = tmp_path / "base"
    shutil.copytree(tiny.base, base)
    settings = json.loads((base / "tokenizer_config.json").read_text())
    (base / "tokenizer_config.json").write_text(json.dumps(settings | {"chat_template": template}))
    done = launch("generate.py", "--model", tiny.adapter, "--base", base, "--chat", "--prompt", "x")
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert "--chat: the chat template of" in done.stderr and reason in done.stderr


def test_files_are_looked_at_before_the_prompt_is_read(tiny, refused, tmp_path) -> None:
    model = ("--model", tiny.adapter)
    lost = tmp_path / "nowhere/document.cache"
    message = refused("generate.py", *model, "--save_cache", lost)
    assert f"--save_cache {lost}: {tmp_path}/nowhere is no folder that can be written" in message
    assert "is a folder" in refused("generate.py", *model, "--save_cache", tmp_path)
    assert "no such file" in refused("generate.py", *model, "--load_cache", lost)


def test_a_prompt_that_is_not_utf8_is_one_line(tiny, tmp_path) -> None:
    (tmp_path / "prompt").write_bytes("größer".encode("latin-1"))
    command = [sys.executable, str(REPOSITORY / "launchers/generate.py"), "--model", str(tiny.adapter)]
    for arguments, source in (
        ([], "stdin"),
        (["--prompt_file", str(tmp_path / "prompt")], "--prompt_file"),
        (["--prompt", b"gr\xf6sser"], "--prompt"),
    ):
        for locale in ("C", "C.UTF-8"):
            environment = {"PATH": os.environ["PATH"], "LC_ALL": locale, "PYTHONCOERCECLOCALE": "0"}
            with open(tmp_path / "prompt", "rb") as stdin:
                done = subprocess.run([*command, *arguments], stdin=stdin, capture_output=True, env=environment)
            assert done.returncode == 2 and done.stderr.count(b"\n") == 1, done.stderr
            assert done.stderr.startswith(f"error: {source}".encode()) and b"cannot be read" in done.stderr


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
    for flag in ("--window_size", "--num_retained_tokens"):
        message = refused("generate.py", "--model", tiny.base, "--prompt", "x", flag, 8)
        assert message.startswith(f"error: {flag} 8: ") and "plain base, which has no window" in message
    retaining = ("generate.py", *model, "--prompt", "x", "--num_retained_tokens")
    assert "--num_retained_tokens: must be >= 0, found -1" in refused(*retaining, -1)
    message = refused(*retaining, 8)
    assert message.startswith(f"error: --num_retained_tokens 8: --model {tiny.adapter} has no fitted scorer")
    assert message.rstrip().endswith("leave the flag out, or train one (launchers/train.py --window.retained 8)")
    assert "and --num_retained_tokens" in refused(*retaining, 0, "--load_cache", tmp_path / "c")


def test_an_adapter_without_its_base_names_the_flag(tiny, refused, tmp_path) -> None:
    settings = json.loads((tiny.adapter / "ahn_config.json").read_text())
    lost = tmp_path / "lost"
    lost.mkdir()
    (lost / "ahn_config.json").write_text(json.dumps(settings | {"base_model": "/gone/base"}))
    message = refused("generate.py", "--model", lost, "--prompt", "x")
    assert "/gone/base" in message and "--base" in message
    message = refused("generate.py", "--model", lost, "--prompt", "x", "--base", tmp_path)
    assert f"--base {tmp_path}" in message
