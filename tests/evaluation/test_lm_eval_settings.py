"""Values that lm-eval takes as they are: --samples, --limit, --num_fewshot and the file of --config."""

import json

import pytest
from lm_eval._cli import HarnessCLI

from pipeline.errors import UserError
from pipeline.evaluation.lm_eval_arguments import read_config


def read(*flags):
    return read_config(HarnessCLI()._parser.parse_args(["run", "--tasks", "a", *map(str, flags)]))


def one_line(message, *flags):
    with pytest.raises(UserError, match=message) as caught:
        read(*flags)
    assert "\n" not in str(caught.value)


def test_samples_are_numbers_in_order(tmp_path):
    (tmp_path / "samples.json").write_text('{"a": [4, 1, 4]}')
    (tmp_path / "settings.yaml").write_text(f"samples: {tmp_path / 'samples.json'}\n")
    for given in (("--samples", tmp_path / "samples.json"), ("--config", tmp_path / "settings.yaml")):
        assert read(*given).samples == {"a": [1, 4]}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("[1, 2]", r"--samples \[1, 2\]: must be"),
        ("{}", "--samples {}: must be"),
        ('{"a": []}', r"--samples a: \[\] must be"),
        ('{"a": [-1]}', r"--samples a: \[-1\] must be"),
        ('{"a": [1.5]}', r"--samples a: \[1.5\] must be"),
        ('{"a": 3}', "--samples a: 3 must be"),
        ("nowhere.json", "--samples nowhere.json: no such file"),
    ],
)
def test_samples_that_cannot_be_are_one_line(given, message):
    one_line(message, "--samples", given)


def test_a_damaged_file_of_samples_is_one_line(tmp_path):
    (tmp_path / "samples.json").write_bytes(b"\xff{")
    one_line(r"--samples .*samples.json: not JSON", "--samples", tmp_path / "samples.json")


@pytest.mark.parametrize("limit", ["nan", "inf", "0", "1.5"])
def test_limits_that_cannot_be_are_one_line(limit):
    one_line(f"--limit {limit}: must be > 0", "--limit", limit)


def test_few_shots_are_not_negative():
    one_line("--num_fewshot -1: must be >= 0", "--num_fewshot", -1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tasks": 5}, "tasks: 5 must be a text or a list"),
        ({"tasks": [1, 2]}, r"tasks: \[1, 2\] must be names"),
        ({"limit": "2"}, 'limit: "2" must be a number'),
        ({"log_samples": 1}, "log_samples: 1 must be true or false"),
        ({"num_fewshot": True}, "num_fewshot: true must be a whole number"),
        ({"gen_kwargs": 3}, "gen_kwargs: 3 must be keys or a text"),
        ({"tusks": "a"}, "unknown key tusks; known: config, model, "),
        ([1], "YAML root must be a mapping"),
    ],
)
def test_a_file_of_settings_that_cannot_be_is_one_line(tmp_path, settings, message):
    (tmp_path / "settings.yaml").write_text(json.dumps(settings))  # JSON is YAML
    one_line(f"--config {tmp_path / 'settings.yaml'}: {message}", "--config", tmp_path / "settings.yaml")


def test_a_file_may_give_what_flags_take(tmp_path):
    settings = {"limit": 2, "gen_kwargs": "top_k=3", "model_args": {"pretrained": "m"}, "batch_size": "1", "seed": 3}
    (tmp_path / "settings.yaml").write_text(json.dumps({**settings, "num_fewshot": None, "metadata": None}))
    config = read("--config", tmp_path / "settings.yaml")
    assert (config.limit, config.gen_kwargs, config.seed) == (2, {"top_k": 3}, [3] * 4)
