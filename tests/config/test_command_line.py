"""Every setting of every launcher on a command line and in a file: text is text, and what is wrong is named."""

import dataclasses
import itertools
import json
from pathlib import Path
from types import NoneType
from typing import get_args

import pytest
import yaml

import pipeline.config
from pipeline.config import (
    ConfigError,
    EvalConfig,
    GenerateConfig,
    MergeConfig,
    PrepareConfig,
    TrainRunConfig,
    parse_cli,
)
from pipeline.config.command_line import CommandLine, is_text, item_type, list_settings, without_none
from pipeline.config.parsing import _load, _unmark

CLASSES = [cls for name in pipeline.config.__all__ if dataclasses.is_dataclass(cls := getattr(pipeline.config, name))]
TEXTS = [
    *("# Quick sort", "#include <stdio.h>", "null", "~", "Null", "---", "--- x", "[1, 2]", "[", "{a: b}", '{"a": 1}'),
    *("1e3", "0x1F", "1_000", "12:30", "2020-01-01", "true", "no", ".inf", " x ", "a: b", "- x", "-1", "-x", "&a"),
    *("*b", "!x", "!!int 3", "%y", "@z", "`q`", "'", '"', '"a"', "'a'", "a\nb: c\n", "\n", "| x", "> x", "? x", ":"),
    *("a,b", "=", "a=b", "\x7f\x85\u2028\ufeff", "\U0001f980", "\udcff", "$HOME", "~/x", "\\n", "a#b", "a #b", "-"),
]  # fmt: skip
TRAIN = ["--model=m", "--data=d", "--output=o", "--ds_config=z.json"]
GENERATE = ["--model=m"]


def texts_of(cls):
    return {name: hint for name, hint in list_settings(cls).items() if is_text(hint)}


def value_at(config, name):
    for part in name.split("."):
        config = getattr(config, part)
    return config


def parse_one(cls, arguments):
    """One setting of a class whose others may be required, or not go with it."""
    line = CommandLine(cls, arguments)
    (argument,) = line.arguments
    return _unmark(_load(argument.removeprefix("--config="), list_settings(cls)))


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_every_text_of_every_command_is_taken_as_it_is(cls):
    for name, hint in texts_of(cls).items():
        for text in TEXTS:
            for arguments in ([f"--{name}={text}"], [f"--{name}", text]):
                found = parse_one(cls, arguments)
                for part in name.split("."):
                    found = found[part]
                assert found == ([text] if item_type(hint) else text), (arguments, found)


@pytest.mark.parametrize("as_file", [False, True], ids=["flag", "file"])
def test_text_arrives_in_the_settings(as_file, tmp_path):
    for text, other in itertools.pairwise([*TEXTS, TEXTS[0]]):
        given = {"model": text, "prompt": text, "base": other}
        flags = [f"--{name}={value}" for name, value in given.items()]
        if as_file:
            flags = [f"--config={tmp_path / 'x.yaml'}"]
            # As JSON where YAML has no such character.
            is_yaml = "\udcff" not in text + other
            (tmp_path / "x.yaml").write_text(yaml.safe_dump(given, default_style='"') if is_yaml else json.dumps(given))
        config = parse_cli(GenerateConfig, flags)
        assert (config.model, config.prompt, config.base) == (Path(text), text, other)
        assert {type(config.prompt), type(config.base)} == {str}


@pytest.mark.parametrize("text", ["# Quick sort", "#include <stdio.h>", "null", "~", "---", "[1, 2]", "", " x "])
def test_a_text_deep_in_the_settings_is_taken_as_it_is(text):
    assert parse_cli(TrainRunConfig, [*TRAIN, "--train.wandb", text]).train.wandb == text


def test_a_list_of_texts_takes_each_as_it_is():
    required = ["--tokenizer=t", "--output=o"]
    for given in (["a,b", "[c]", "null", "-x"], ["[a, b]"], ['["a"]'], ["--- x", "{a: b}"]):
        assert parse_cli(PrepareConfig, [*required, "--inputs", *given]).inputs == given
    assert parse_cli(PrepareConfig, [*required, "--inputs", "x", "--exclude"]).exclude == []
    config = parse_cli(EvalConfig, ["--model=m", "--output=o", "--tasks", "[ab]*", "null"])
    assert config.tasks == ["[ab]*", "null"]


def test_null_leaves_what_is_no_text_unset(tmp_path):
    (tmp_path / "x.yaml").write_text("window_size: 7\nprompt_file: f\nbase: b\n")
    config = parse_cli(GenerateConfig, [*GENERATE, f"--config={tmp_path / 'x.yaml'}", "--window_size", "null"])
    assert (config.window_size, config.prompt_file, config.base) == (None, Path("f"), "b")
    (tmp_path / "x.yaml").write_text("prompt: null\nbase: ~\nmodel: m\n")
    assert parse_cli(GenerateConfig, [f"--config={tmp_path / 'x.yaml'}"]).base is None


def test_what_comes_later_wins(tmp_path):
    (tmp_path / "x.yaml").write_text("model: of file\ntrain: {seed: 3, wandb: of file, max_steps: 5}\n")
    flags = [*TRAIN, "--train.wandb", "of flag", "--train.seed", "4", "--train.seed", "5"]
    for arguments, expected in (
        ([f"--config={tmp_path / 'x.yaml'}", *flags], ("m", 5, "of flag", 5)),
        ([*flags, "--config", str(tmp_path / "x.yaml")], ("of file", 3, "of file", 5)),
    ):
        config = parse_cli(TrainRunConfig, arguments)
        assert (config.model, config.train.seed, config.train.wandb, config.train.max_steps) == expected


@pytest.mark.parametrize(
    "given", [["heldout,needles"], ["heldout", "needles"], ["heldout, needles"], ["[heldout, needles]"]]
)
def test_a_list_of_names_or_numbers_in_every_form(given):
    required = ["--model=m", "--output=o"]
    assert parse_cli(EvalConfig, [*required, "--suites", *given]).suites == ["heldout", "needles"]
    numbers = ",".join(given).replace("heldout", "100").replace("needles", "20")
    assert parse_cli(EvalConfig, [*required, f"--needles.lengths={numbers}"]).needles.lengths == [100, 20]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--train.max_step", "3"], "--train.max_step: no such flag; did you mean --train.max_steps?; see --help"),
        (["--max_steps=3"], "--max_steps: no such flag; did you mean --train.max_steps?; see --help"),
        (
            ["--train.learning-rate=3"],
            "--train.learning-rate: no such flag; did you mean --train.learning_rate?; see --help",
        ),
        (["--modle", "x"], "--modle: no such flag; did you mean --model?; see --help"),
        (["--qqqqq"], "--qqqqq: no such flag; see --help"),
        (["--train.wandb"], "--train.wandb: a value is missing; one that begins with -- is given as"),
        (["--train.wandb", "a", "b"], "'b' belongs to no flag; quote a value that has spaces"),
        (["--teacher_cache="], "--teacher_cache: the path is empty"),
        (["--train.max_steps=x"], "--train.max_steps: expected a whole number, found x"),
        (["--window.budgets", "x"], "--window.budgets: expected a list, each a whole number or null, found ['x']"),
    ],
)
def test_a_wrong_command_line_is_refused_in_one_line(arguments, expected):
    with pytest.raises(ConfigError) as error:
        parse_cli(TrainRunConfig, [*TRAIN, *arguments])
    assert str(error.value).startswith(expected) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("train: {max_step: 3}", "train.max_step: no such setting; did you mean train.max_steps?; see --help"),
        ("trian: {max_steps: 3}", "trian: no such setting; did you mean train?; see --help"),
        ("train: 3", "--train: expected settings as name: value, found 3"),
        ("train: {wandb: 3}", "--train.wandb: expected text or null, found 3"),
        ("train: {max_steps: many}", "--train.max_steps: expected a whole number, found many"),
        ("train: {mixture: [a]}", "--train.mixture: expected a mapping of names to a number or null, found ['a']"),
        ("train: {adam_betas: [1]}", "--train.adam_betas: expected a list of 2: a number, a number, found [1]"),
        ("memory: {cell: x}", "--memory.cell: expected one of 'gated_delta_net', 'delta_net', 'mamba2', found x"),
        ("teacher_cache: 3", "--teacher_cache: expected a path or null, found 3"),
        ("profile: [a]", "--profile: expected text or null, found ['a']"),
        ("- a", "--config "),
        ("a: [", "--config "),
        ("", "--config "),
    ],
)
def test_a_wrong_file_is_refused_in_one_line(text, expected, tmp_path):
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(ConfigError) as error:
        parse_cli(TrainRunConfig, [*TRAIN, f"--config={tmp_path / 'x.yaml'}"])
    assert str(error.value).startswith(expected) and "\n" not in str(error.value)


def test_a_dtype_for_a_layout_without_the_base_is_refused():
    given = ["--adapter=a", "--output=o", "--layout=published"]
    with pytest.raises(ConfigError, match=r"^--dtype bfloat16: --layout published holds no weights of the base"):
        parse_cli(MergeConfig, [*given, "--dtype=bfloat16"])
    assert parse_cli(MergeConfig, given).dtype == "auto"


def test_every_text_setting_is_found():
    """The rule by which the command line takes text, against the types themselves."""
    for cls in CLASSES:
        for name, hint in list_settings(cls).items():
            choices = {without_none(hint), *get_args(hint), item_type(hint)} - {NoneType, None}
            is_mapping = str(hint).startswith("dict") or "dict[" in str(hint)
            assert is_text(hint) == (bool(choices & {str, Path}) and not is_mapping), (cls, name)


def test_a_whole_list_replaces_what_came_before_and_more_is_added_to_it():
    flags = ["--window.budgets", "10", "20", "--window.budgets", "[50]"]
    given = ["--model", "m", "--data", "d", "--output", "o", "--ds_config", "z", "--window.sinks", "0"]
    assert parse_cli(TrainRunConfig, [*given, *flags]).window.budgets == [50]
