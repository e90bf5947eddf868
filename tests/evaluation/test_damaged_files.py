"""Small files that are cut short, emptied or something else: each is a line that names it and what to do."""

import json
import re
import shutil

import pytest

from pipeline.errors import UserError
from pipeline.evaluation.recall.study import keep_scores
from pipeline.evaluation.recall.summary import BaseScores
from pipeline.evaluation.training_curve import read_training_curve
from pipeline.model.files import resolve_model

ROW = b'{"step": 1, "loss/kl": 0.5}\n'
WINDOW = {"num_sink_tokens": 4, "window_size": 24, "base_model": "base"}
SCORES = [{"full": 1.0, "window": 0.0, "limit": 0.5}, {"full": 0.9, "window": 0.1, "limit": 0.25}]


def refusal(call) -> str:
    with pytest.raises(UserError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    "damage",
    [b'{"step": 2, "lo\n', b"\n", b"\xff\x00\n", b"[]\n", b'{"loss/kl": 0.5}\n', b'{"step": 2, "loss/kl": "x"}\n'],
)
def test_a_damaged_line_of_the_metrics_is_named(tmp_path, damage) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(ROW + damage + ROW)
    told = refusal(lambda: read_training_curve(tmp_path))
    assert told.startswith(f"--run {tmp_path}: line 2 of metrics.jsonl is damaged (")
    assert told.endswith("); delete that line, or leave out --run")
    path.write_bytes(ROW + ROW)
    assert read_training_curve(tmp_path).losses == [0.5, 0.5]


DAMAGED_SETTINGS = [
    b'{"cell',
    b"",
    b"\xff",
    b"[]",
    b"{}",
    json.dumps({**WINDOW, "window_size": "24"}).encode(),
    json.dumps({**WINDOW, "window_size": 2.5}).encode(),
    json.dumps({**WINDOW, "window_size": 0}).encode(),
]


@pytest.mark.parametrize("damage", [*DAMAGED_SETTINGS, json.dumps({**WINDOW, "base_model": None}).encode()])
def test_damaged_settings_of_an_adapter_are_named(folder, tmp_path, damage) -> None:
    adapter = shutil.copytree(folder / "adapter", tmp_path / "adapter")
    (adapter / "ahn_config.json").write_bytes(damage)
    told = refusal(lambda: resolve_model(adapter, str(folder / "base")))
    assert re.fullmatch(rf"--model {adapter}: ahn_config\.json is damaged \(.+\); copy or export the model again", told)


@pytest.mark.parametrize("damage", [b'{"arch', b"[]", *(b'{"ahn": ' + ahn + b"}" for ahn in DAMAGED_SETTINGS)])
def test_damaged_settings_of_a_model_are_named(tmp_path, damage) -> None:
    (tmp_path / "config.json").write_bytes(damage)
    told = refusal(lambda: resolve_model(tmp_path, None))
    assert told.startswith(f"--model {tmp_path}: config.json is damaged (")
    (tmp_path / "config.json").write_text(json.dumps({"ahn": WINDOW}))
    assert resolve_model(tmp_path, None).window.window_size == 24


@pytest.mark.parametrize(
    "damage",
    [
        lambda whole: whole[:-5],
        lambda whole: b"",
        lambda whole: b"[]",
        lambda whole: b"3",
        lambda whole: json.dumps(SCORES[:1]).encode(),
        lambda whole: whole.replace(b'"limit"', b'"limits"'),
        lambda whole: whole.replace(b"0.25", b'"x"'),
    ],
)
def test_damaged_scores_are_named_and_made_again_without_them(tmp_path, damage) -> None:
    path, scores = tmp_path / "scores/base-seed0.json", [BaseScores(**row) for row in SCORES]
    assert keep_scores(path, BaseScores, 2, lambda: scores) == scores
    path.write_bytes(damage(path.read_bytes()))
    told = refusal(lambda: keep_scores(path, BaseScores, 2, lambda: scores))
    assert re.fullmatch(
        rf"--output {tmp_path}: scores/base-seed0\.json is damaged \(.+\); delete it to score again", told
    )
    path.unlink()
    assert keep_scores(path, BaseScores, 2, lambda: scores) == scores
    assert keep_scores(path, BaseScores, 2, list) == scores
