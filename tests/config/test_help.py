"""--help of every command: whole sentences about every flag, in the width of the terminal, and nothing cut."""

import dataclasses
import io
import re
from contextlib import redirect_stdout

import pytest

import pipeline.config
from pipeline.byte_counts import format_bytes, round_bytes
from pipeline.config import parse_cli
from pipeline.config.command_line import list_settings
from pipeline.flags import ToolParser, find_nearest

PARTS = {
    "Absorbed",
    "Efficiency",
    "Memory",
    "Needles",
    "Probing",
    "RecallBase",
    "RecallTask",
    "Site",
    "Train",
    "Window",
}
COMMANDS = [
    cls
    for name in pipeline.config.__all__
    if name.endswith("Config") and name.removesuffix("Config") not in PARTS
    and dataclasses.is_dataclass(cls := getattr(pipeline.config, name))
]  # fmt: skip


def help_of(cls, columns, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    with redirect_stdout(io.StringIO()) as out, pytest.raises(SystemExit):
        parse_cli(cls, ["--help"])
    return out.getvalue()


@pytest.mark.parametrize("cls", COMMANDS, ids=lambda cls: cls.__name__)
def test_help_names_every_flag_in_whole_sentences(cls, monkeypatch):
    text = help_of(cls, 80, monkeypatch)
    assert max(map(len, text.splitlines())) <= 80
    whole = " ".join(text.split())
    for paragraph in (cls, *(hint for hint in list_settings(cls).values() if dataclasses.is_dataclass(hint))):
        assert " ".join((paragraph.__doc__ or "").split()) in whole
    entries = re.findall(r"^  (--.*(?:\n {8,}.*)*)", text, re.M)
    assert {entry.split()[0] for entry in entries} == {"--config", *(f"--{name}" for name in list_settings(cls))}
    for entry in entries:
        described = " ".join(entry.split())
        assert described.endswith(".") and len(described.split()) > 3, described
        assert "<class" not in described and "Optional[" not in described
    assert max(map(len, help_of(cls, 120, monkeypatch).splitlines())) <= 120


def test_byte_counts_are_for_people():
    assert [round_bytes(n) for n in (0, 1023, 1024, 1 << 20, 10_093_173_145)] == [
        *("0 bytes", "1023 bytes", "1.0 KiB", "1.0 MiB", "9.4 GiB")
    ]
    assert round_bytes((1 << 30) - 1) == "1.0 GiB" and round_bytes(1 << 62) == "4096.0 PiB"
    assert format_bytes(10_093_173_145) == "9.4 GiB (10093173145 bytes)" and format_bytes(9) == "9 bytes"


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["DIR", "--smaple", "3"], "error: --smaple: no such flag; did you mean --sample?; see --help\n"),
        (["DIR", "--zzzzzz"], "error: --zzzzzz: no such flag; see --help\n"),
        (["DIR", "--samp", "3"], "error: --samp: no such flag; did you mean --sample?; see --help\n"),
        (["DIR", "--sample", "x"], "error: argument --sample: invalid int value: 'x'; see --help\n"),
        ([], "error: the following arguments are required: folder; see --help\n"),
    ],
)
def test_a_tool_names_the_nearest_flag_in_one_line(argv, expected, capsys):
    parser = ToolParser("tool", "What it does.", "More.\n\nAnd more.")
    parser.add_argument("folder")
    parser.add_argument("--sample", type=int)
    with pytest.raises(SystemExit) as ended:
        parser.parse_args(argv)
    assert (ended.value.code, capsys.readouterr().err) == (2, expected)


def test_nearest():
    known = ["--train.max_steps", "--train.seed", "--seed", "--train.learning_rate"]
    asked = ["--train.max_step", "--max_steps", "--train.sed", "--sed", "--learning-rate", "--zzz"]
    assert [find_nearest(name, known) for name in asked] == [
        *("--train.max_steps", "--train.max_steps", "--train.seed", "--seed", "--train.learning_rate", None)
    ]
