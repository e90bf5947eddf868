"""Which stages are left out because their result is there."""

import json
from pathlib import Path

from pipeline.config import EvalConfig, PrepareConfig, TeacherCacheConfig, TrainConfig, TrainRunConfig
from pipeline.launching.results import num_steps_done, split_finished
from pipeline.launching.stages import Stage


def stages_in(root: Path) -> dict[str, Stage]:
    configs = {
        "prepare": PrepareConfig("base", root / "data", inputs=["x"]),
        "cache": TeacherCacheConfig("base", "data", root / "cache", "hidden"),
        "train": TrainRunConfig("base", "data", root / "run", Path("zero.json"), train=TrainConfig(max_steps=9)),
        "evaluate": EvalConfig(root / "run/adapter", data="heldout", output=root / "eval"),
    }
    return {name: Stage(name, [], config) for name, config in configs.items()}


def checkpoint(root: Path, step: int) -> None:
    folder = root / f"run/checkpoints/step-{step}"
    folder.mkdir(parents=True)
    (folder / "state.json").write_text(json.dumps({"step": step}))
    (folder.parent / "latest").write_text(folder.name)


def test_what_is_finished_is_left_out_up_to_the_first_that_is_not(tmp_path):
    marks = ["data/manifest.json.sha256", "cache/shards.json.sha256", None, "eval/report.json"]
    for number, mark in enumerate(marks):
        pending, finished = split_finished(stages_in(tmp_path))
        assert list(finished) == list(stages_in(tmp_path))[:number] and len(pending) == 4 - number
        if mark is None:
            checkpoint(tmp_path, 9)
        else:
            (tmp_path / mark).parent.mkdir()
            (tmp_path / mark).write_text("")
    assert split_finished(stages_in(tmp_path))[0] == {}
    (tmp_path / "cache/shards.json.sha256").unlink()
    assert list(split_finished(stages_in(tmp_path))[0]) == ["cache", "train", "evaluate"]


def test_a_run_counts_by_its_newest_checkpoint(tmp_path):
    config = stages_in(tmp_path)["train"].config
    assert num_steps_done(config) == 0
    (tmp_path / "run/checkpoints").mkdir(parents=True)
    assert num_steps_done(config) == 0  # killed before the first
    checkpoint(tmp_path, 8)
    assert num_steps_done(config) == 8
    assert "train" in split_finished({"train": stages_in(tmp_path)["train"]})[0]
    (tmp_path / "run/checkpoints/step-8/state.json").write_text("{")
    assert num_steps_done(config) == 0
