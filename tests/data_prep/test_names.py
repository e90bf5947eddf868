"""What the name of a file holds is printed escaped: in the summary, in every error, by every tool."""

import json
import os
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from data_prep.sample_view import main as inspect_main
from data_prep.stats import main as stats_main
from data_prep.summary import describe
from data_prep.verify import main as verify_main
from pipeline.data.shard_format import DataError, Manifest
from pipeline.errors import UserError, escape_controls
from pipeline.launching.findings import Findings

LAUNCHER = Path(__file__).parents[2] / "launchers" / "prepare.py"
NAME = "a\x1b[31mred\x07\r\n\u202etxt.\u200b\x9b2J\t é漢.jsonl"
SHOWN = r"a\x1b[31mred\x07\r\n\u202etxt.\u200b\x9b2J\t é漢.jsonl"
FOREIGN = os.fsdecode(b"out\xff\x1b[2J")


def _is_harmless(text: str) -> bool:
    return all(line == escape_controls(line) for line in text.rstrip("\n").split("\n"))


def test_names_in_the_summary_are_escaped(tmp_path: Path, run_prepare: Callable[..., Manifest]) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / NAME).write_text('{"text": "good"}\n{"text": ""}\n')
    (folder / "plain é 漢.jsonl").write_text('{"text": ""}\n{"text": 1}\n{"text": "x"}\n')
    lines = describe(run_prepare([folder], tmp_path / "out")).split("\n")
    assert lines[-2:] == [f"  default/{SHOWN}: 1 empty", "  default/plain é 漢.jsonl: 1 empty, 1 missing_text_field"]
    assert len(lines) == 5


def test_names_in_errors_are_escaped(tmp_path: Path, run_prepare: Callable[..., Manifest]) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / NAME).write_text('{"body": "good"}\n')
    for settings in ({}, {"exclude": [f"no{NAME}"]}, {"min_bytes": 100}, {"inputs": [f"{folder}/no{NAME}"]}):
        with pytest.raises(DataError) as caught:
            run_prepare(**({"inputs": [folder], "output": tmp_path / "out"} | settings))
        assert _is_harmless(str(caught.value)) and "\n" not in str(caught.value)
    (folder / FOREIGN).with_suffix(".jsonl").write_text("{}")
    with pytest.raises(DataError, match=r"the name 'out\\udcff\\x1b\[2J.jsonl' is not UTF-8"):
        run_prepare([folder], tmp_path / "out")


def test_every_user_error_is_one_line_of_what_can_be_shown() -> None:
    error = UserError(f"--x {NAME}{FOREIGN}: wrong")
    assert str(error) == rf"--x {SHOWN}out\udcff\x1b[2J: wrong" and _is_harmless(str(UserError(str(error))))
    findings = Findings()
    with findings.of("prepare"):
        raise error
    assert str(findings) == f"error: prepare: {error}\n"
    assert escape_controls("a\tb\n\u200d", "\n") == "a\\tb\n\\u200d"
    assert escape_controls("plain é 漢字 🙂 \\x1b") == "plain é 漢字 🙂 \\x1b"


def test_the_whole_way_with_odd_names(
    tmp_path: Path, tiny_tokenizer: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The launcher and the tools, with an output folder whose name would clear the terminal."""
    (tmp_path / NAME).write_text('{"text": "good"}\n{"text": ""}\n')
    output = tmp_path / "out\x1b[2J"
    command = ["--inputs", tmp_path / NAME, "--tokenizer", tiny_tokenizer, "--output", output, "--seq_len", "64"]
    monkeypatch.setattr(sys, "argv", [str(LAUNCHER), *map(str, command)])
    runpy.run_path(str(LAUNCHER), run_name="__main__")
    runpy.run_path(str(LAUNCHER), run_name="__main__")  # what is finished
    assert inspect_main([str(output)]) == verify_main([str(output)]) == stats_main([str(output)]) == 0
    (output / "manifest.json").write_text(json.dumps({"\x1b[2J": 1}))
    assert inspect_main([str(output)]) == verify_main([str(output)]) == stats_main([str(output)]) == 1
    captured = capsys.readouterr()
    assert _is_harmless(captured.out) and _is_harmless(captured.err.rpartition("\r")[2])
    assert SHOWN in captured.out and r"out\x1b[2J is already complete" in captured.out
