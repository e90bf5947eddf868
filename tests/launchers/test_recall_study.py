"""recall_study.py as a user runs it: what it refuses, and a small study from the base to the table."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from launchers.recall_study import claim_output
from pipeline.config import RecallBaseConfig, RecallStudyConfig
from pipeline.errors import UserError
from tests.drill import record
from tests.launchers.conftest import REPOSITORY

TASK = {"num_keys": 16, "num_values": 32, "num_fillers": 8, "num_sink_tokens": 2, "window_size": 8}
BASE = {"hidden_size": 64, "head_dim": 32, "intermediate_size": 32, "tokens_per_step": 1024, "learning_rate": 3e-3,
        "max_facts": 4, "max_distance": 5, "max_steps": 2000}  # fmt: skip
STUDY = {"cells": ["delta_net"], "seeds": [0], "retained": [0, 4], "facts": [2, 4], "distances": [2, 4],
         "questions": 64, "train_documents": 1440, "task": TASK, "base": BASE}  # fmt: skip


def study(output: Path, *flags: object, timeout: float) -> str:
    """Runs a study to its end and returns what it printed; its progress goes to the terminal."""
    command = [sys.executable, REPOSITORY / "launchers/recall_study.py", "--output", output, *flags]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [str(part) for part in command], stdout=subprocess.PIPE, text=True, timeout=timeout, env=environment
    )
    assert done.returncode == 0
    return done.stdout


def test_refuses_what_cannot_work_in_one_line(refused, tmp_path) -> None:
    output = ("--output", tmp_path / "out")
    assert "--cells: lstm is none of" in refused("recall_study.py", *output, "--cells", "lstm")
    assert "--facts: [4, 4]" in refused("recall_study.py", *output, "--facts", "[4, 4]")
    assert "--retained: each must be >= 0" in refused("recall_study.py", *output, "--retained", "[-1]")
    lossless = refused("recall_study.py", *output, "--retained", "[0, 33]", "--facts", 8, "--distances", 1)
    assert "--retained: with 33 tokens" in lossless and "at most 32" in lossless
    assert "--task.num_keys is 32" in refused("recall_study.py", *output, "--task.num_keys", 32)
    kv_heads = refused("recall_study.py", *output, "--base.num_heads", 3, "--base.num_kv_heads", 2)
    assert "--base.num_heads 3" in kv_heads and "--base.num_kv_heads 2" in kv_heads
    assert "--base.head_dim 33: must be even" in refused("recall_study.py", *output, "--base.head_dim", 33)
    gone = tmp_path / "gone.yaml"
    assert f"--recipe {gone}: no such file" in refused("recall_study.py", *output, "--recipe", gone)
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    (tmp_path / "out/study.json").write_text("{}")
    assert "a study with other settings" in refused("recall_study.py", *output)
    (tmp_path / "out/study.json").write_text('{"facts": [')
    assert "study.json is damaged" in refused("recall_study.py", *output)
    (tmp_path / "file").write_text("")
    assert "--output" in (error := refused("recall_study.py", "--output", tmp_path / "file")) and "a directory" in error


def test_another_base_may_be_tried_until_there_are_scores_or_runs(tmp_path) -> None:
    def claim(**changed) -> dict:
        base, study = changed.pop("base", {}), {"seeds": [0], **changed}
        claim_output(RecallStudyConfig(output=tmp_path / "out", base=RecallBaseConfig(**base), **study))
        return json.loads((tmp_path / "out/study.json").read_text())

    assert claim(base={"max_steps": 10})["base"]["max_steps"] == 10
    assert claim(base={"max_steps": 20, "seed": 1}, seeds=[1])["base"]["max_steps"] == 20
    with pytest.raises(UserError, match=r"other settings \(study\.json: questions\)"):
        claim(questions=8)
    for name in ("scores", "runs"):
        (tmp_path / "out" / name).mkdir()
        claim(base={"max_steps": 30})
        (tmp_path / "out" / name / "one").mkdir()
        claim(base={"max_steps": 30}, seeds=[2], retained=[0, 4])
        with pytest.raises(UserError, match=r"other settings \(study\.json: base\)"):
            claim(base={"max_steps": 40})
        (tmp_path / "out" / name / "one").rmdir()
    names = ["bases", "run.json", "runs", "scores", "study.json"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names
    assert len(json.loads((tmp_path / "out/run.json").read_text())["starts"]) == 6


@pytest.mark.drill
@pytest.mark.timeout(600)
def test_a_small_study_recalls_what_the_window_loses_and_is_done_once(tmp_path) -> None:
    recipe = yaml.safe_load((REPOSITORY / "launchers/recipes/recall.yaml").read_text())
    recipe["train"] |= {"max_steps": 120, "save_every": 120}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(STUDY | {"recipe": str(tmp_path / "recipe.yaml")}))
    flags = (tmp_path / "study", "--config", tmp_path / "study.yaml")
    printed = study(*flags, timeout=280)
    points = json.loads((tmp_path / "study/recall.json").read_text())["points"]
    assert [(point["facts"], point["distance"]) for point in points] == [(2, 2), (2, 4), (4, 2), (4, 4)]
    for point in points:
        found = point["cells"]["delta_net"]
        assert point["full"] >= 0.95 and point["window"] <= 0.1
        assert found["recovered"] > 0.4 and found["recovered_ci95"] is None
        assert found["memory_off"] == point["window"] and found["foreign_state"] < 0.2
        beside = point["retained"]["4"]["delta_net"]
        assert beside["memory_off"] == point["window"] and beside["foreign_state"] < 0.2
        assert beside["recovered"] > 0.6 and beside["retained"] > max(beside["wider"], beside["random"])
    assert all(point["limit"] > point["window"] for point in points)
    runs = sorted(path.name for path in (tmp_path / "study/runs").iterdir() if path.is_dir())
    assert runs == ["delta_net-retained4-seed0", "delta_net-seed0"]
    assert (tmp_path / "study/recall.txt").read_text() in printed

    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "study/runs").rglob("*")}
    again = study(*flags, timeout=60)
    assert (tmp_path / "study/recall.txt").read_text() in again
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "study/runs").rglob("*")} == before
    assert "$ " not in again, "a finished run was started again"


@pytest.mark.drill
@pytest.mark.timeout(4 * 3600)
@pytest.mark.parametrize(
    ("name", "flags"),
    [
        ("recall", ()),
        ("recall_qwen2", ("--base.family", "qwen2")),
        ("recall_published", ("--init", "published")),
    ],
)
def test_the_whole_study(name, flags) -> None:
    """Kept in runs/: a drill that was stopped goes on. With published decays, not every seed of Mamba2 learns."""
    output = REPOSITORY / "runs" / name
    study(output, *flags, timeout=3 * 3600)
    result = json.loads((output / "recall.json").read_text())
    record(name, result)
    nearest = [point for point in result["points"] if point["facts"] == 4 and point["distance"] <= 4]
    for point in nearest:
        cells = point["cells"]
        assert cells["gated_delta_net"]["recovered"] >= 0.4 and cells["delta_net"]["recovered"] >= 0.4
        assert name == "recall_published" or cells["mamba2"]["recovered_ci95"][0] > 0
        for found in cells.values():
            assert found["memory_off"] == point["window"] and found["foreign_state"] < point["window"] + 0.05


@pytest.mark.drill
@pytest.mark.timeout(2 * 3600)
def test_memories_beside_retained_tokens() -> None:
    """As many tokens as there are facts, and twice or half as many; kept in runs/, as the whole study is."""
    output = REPOSITORY / "runs/recall_retained"
    grid = ("--cells", "gated_delta_net", "--facts", 32, 64, "--distances", 4, 16)
    study(output, *grid, "--task.mixed_filler", "true", "--retained", 32, 64, timeout=7000)
    result = json.loads((output / "recall.json").read_text())
    record("recall_retained", result)
    least = {(32, "32"): 0.7, (32, "64"): 0.9, (64, "32"): 0.3, (64, "64"): 0.7}  # of what the window loses
    for point in result["points"]:
        assert point["full"] >= 0.95 and point["window"] <= 0.02
        for count, cells in point["retained"].items():
            found = cells["gated_delta_net"]
            assert found["memory_off"] == point["window"] and found["foreign_state"] < 0.05
            assert found["memory"] > found["retained"] > found["random"] > found["wider"]
            assert found["recovered"] >= least[point["facts"], count]
