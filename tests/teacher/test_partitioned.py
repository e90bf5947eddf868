"""One teacher partitioned over two ranks writes the bytes of a whole one, and no rank outlives the other's error."""

import json
import shutil
from pathlib import Path

import pytest

from pipeline.config import ConfigError
from pipeline.teacher.partition_config import load_partition_config
from tests.distributed.processes import REPOSITORY, Finished, run_ranks
from tests.launchers.conftest import launch
from tests.teacher import partition_job
from tests.teacher.cache_folders import content
from tests.teacher.capture_inputs import make_data, make_teacher

SHIPPED = REPOSITORY / "ds_configs"
# All weights partitioned, those of a tiny model too.
SETTINGS = {"zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0}}
SIGNALS = {
    "hidden": ["--signal", "hidden", "--dtype", "float32", "--base_dtype", "float32", "--forward_chunk", "20"],
    "sampled": ["--signal", "sampled"],
}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("partitioned")
    teacher = make_teacher(root / "teacher", family="phi", partial_rotary_factor=0.5)  # its head has a bias
    make_data(root / "data", teacher, repeats=3)
    (root / "zero3.json").write_text(json.dumps(SETTINGS))
    return root


def capture(inputs: Path, cache: Path, folder: Path, flags: list[str], ds_config: Path | None = None) -> list[Finished]:
    """The launcher as two ranks that share a teacher."""
    named = {"model": inputs / "teacher", "data": inputs / "data", "output": cache}
    named["ds_config"] = ds_config or inputs / "zero3.json"
    arguments = [x for name, value in named.items() for x in (f"--{name}", value)]
    return run_ranks(REPOSITORY / "launchers/cache_teacher.py", [*arguments, *flags], folder)


@pytest.fixture(scope="module", params=SIGNALS)
def whole(request: pytest.FixtureRequest, inputs: Path) -> tuple[str, Path]:
    """Name of the signal, and its cache by one process with a whole teacher."""
    cache = inputs / request.param
    flags = ["--model", inputs / "teacher", "--data", inputs / "data", "--output", cache]
    done = launch("cache_teacher.py", *flags, *SIGNALS[request.param])
    assert done.returncode == 0, done.stderr
    return request.param, cache


@pytest.mark.slow
def test_the_bytes_are_those_of_a_whole_teacher(inputs, whole, tmp_path) -> None:
    name, due = whole
    ended = capture(inputs, tmp_path / "cache", tmp_path, SIGNALS[name])
    assert [f.returncode for f in ended] == [0, 0], ended[0].output + ended[1].output
    assert content(tmp_path / "cache") == content(due)
    assert all("is complete" in f.output and "wrote 0 shards" not in f.output for f in ended)
    assert "100%" in ended[0].output and "tok/s" in ended[0].output and "tok/s" not in ended[1].output


@pytest.mark.slow
def test_a_rank_without_work_takes_part_in_the_others(inputs, whole, tmp_path) -> None:
    """One shard is missing; with weights offloaded to the CPU."""
    name, due = whole
    cache = shutil.copytree(due, tmp_path / "cache")
    for suffix in ("tar", "idx.npy"):
        (cache / f"shard-00000-001.{suffix}").unlink()
    ended = capture(inputs, cache, tmp_path, SIGNALS[name], SHIPPED / "zero3_offload.json")
    assert [f.returncode for f in ended] == [0, 0], ended[0].output + ended[1].output
    assert sum("wrote 0 shards" in f.output for f in ended) == 1 and content(cache) == content(due)


@pytest.mark.slow
def test_an_error_of_one_rank_ends_both_with_its_message(inputs, tmp_path) -> None:
    data = shutil.copytree(inputs / "data", tmp_path / "data")
    damaged = sorted(data.glob("*.tar"))[1]
    raw = bytearray(damaged.read_bytes())
    at = len(raw) // 2  # in a sample that is not the first one
    raw[at : at + 2048] = bytes(byte ^ 1 for byte in raw[at : at + 2048])
    damaged.write_bytes(raw)
    ended = capture(inputs, tmp_path / "cache", tmp_path, [*SIGNALS["sampled"], "--data", str(data)])
    assert [f.returncode for f in ended] == [2, 2], ended[0].output + ended[1].output
    for f in ended:
        assert "Traceback" not in f.output and "is damaged" in f.output.splitlines()[-1], f.output
    assert sum("(found by rank" in f.output for f in ended) == 1


@pytest.mark.slow
def test_each_rank_holds_its_part_of_the_weights_alone(inputs, tmp_path) -> None:
    ended = run_ranks(Path(partition_job.__file__), [inputs / "teacher", inputs / "zero3.json"], tmp_path)
    assert [f.returncode for f in ended] == [0, 0], ended[0].output + ended[1].output
    facts = [json.loads(f.output.splitlines()[-1]) for f in ended]
    assert [f["computed"] for f in facts] == [9, False]
    for f in facts:
        assert f["dtype"] == "torch.bfloat16"
        assert f["weights"] > 10_000 and max(f["loaded"], f["after"]) < 0.51 * f["weights"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"zero_optimization": {"stage": 2}}, "has ZeRO stage 2, only stage 3 partitions weights"),
        ({}, "has ZeRO stage None"),
        ({"zero_optimization": 3}, "must be an object, found 3"),
        ({**SETTINGS, "optimizer": {"type": "Adam"}, "bf16": {"enabled": True}}, "sets optimizer, bf16, without mean"),
        ({**SETTINGS, "train_batch_size": 8}, "sets train_batch_size, without meaning for a teacher"),
        ({"zero_optimization": {"stage": 3, "zero_quantized_weights": True}}, "zero_quantized_weights, which rounds"),
        ([3], "must hold a JSON object, found list"),
    ],
)
def test_settings_that_no_teacher_can_follow_are_refused_by_name(tmp_path, settings, message) -> None:
    path = tmp_path / "ds.json"
    path.write_text(json.dumps(settings))
    with pytest.raises(ConfigError, match=rf"^--ds_config \S+ds\.json:? .*{message}") as error:
        load_partition_config(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["zero3.json", "zero3_offload.json"])
def test_the_shipped_stage_3_files_are_taken(name) -> None:
    assert load_partition_config(SHIPPED / name)["zero_optimization"]["memory_efficient_linear"] is False
