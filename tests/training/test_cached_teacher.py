"""Training from a teacher cache is training with the teacher: same losses, any topology, switched at any resume."""

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file

from pipeline.config import TeacherCacheConfig, parse_cli
from pipeline.data.dataset import PackedDataset
from pipeline.metrics.logger import read_metrics
from pipeline.teacher.capture import run_capture
from pipeline.teacher.capture_plan import plan_capture
from tests.distributed.processes import REPOSITORY, run_ranks
from tests.teacher.capture_inputs import make_data, make_teacher
from tests.training import cached_runs

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]
BIG_VOCABULARY = 151_936
MAX_STEPS, SWITCH = 20, 9
CACHES = {  # name: (model, base_dtype, flags)
    "fp32": ("teacher", "float32", ["--signal=hidden", "--dtype=float32"]),
    "fp32_in_bf16": ("teacher", "float32", ["--signal=hidden", "--dtype=bfloat16"]),
    "bf16": ("teacher", "bfloat16", ["--signal=hidden", "--dtype=bfloat16", "--min_budget=12"]),
    "topk_all": ("teacher", "float32", ["--signal=topk", "--k=97"]),
    "big": ("big_teacher", "float32", ["--signal=hidden", "--dtype=float32"]),
    "big_topk": ("big_teacher", "float32", ["--signal=topk", "--k=20000"]),
}
BF16, ZERO3 = "--train.base_dtype=bfloat16", f"--ds_config={REPOSITORY}/ds_configs/zero3.json"
SHORT = "--train.max_steps=3"
RUNS = {  # name: (cache or None, flags); a second entry goes on where the first was stopped
    "online": [(None, [])],
    "fp32": [("fp32", [])],
    "two samples a row": [("fp32", ["--train.micro_batch_size=2"])],
    "zero3, half the shards": [("half", [ZERO3, "--teacher_fallback=online"])],
    "online, then cached": [(None, []), ("fp32", [])],
    "cached, then online": [("fp32", ["--train.loader_workers=1"]), (None, [])],
    "fp32_in_bf16": [("fp32_in_bf16", [])],
    "topk_all": [("topk_all", [])],
    "online bf16": [(None, [BF16])],
    "bf16": [("bf16", [BF16])],
    "online big": [(None, [SHORT])],
    "big": [("big", [SHORT])],
    "big_topk": [("big_topk", [SHORT])],
}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    """Two teachers, data with text and chats, and their caches; `half` lacks every second shard of `fp32`."""
    root = tmp_path_factory.mktemp("cached_teacher")
    make_data(root / "data", make_teacher(root / "teacher"), repeats=2)
    make_teacher(root / "big_teacher", BIG_VOCABULARY, 8)
    for name, (model, dtype, flags) in CACHES.items():
        named = [f"--model={root / model}", f"--data={root / 'data'}", f"--output={root / name}"]
        plan = plan_capture(parse_cli(TeacherCacheConfig, [*named, f"--base_dtype={dtype}", *flags]))
        assert run_capture(plan, rank=0, num_ranks=1, local_rank=0).num_left == 0
    shutil.copytree(root / "fp32", root / "half")
    for path in root.glob("half/shards.json*"):
        path.unlink()
    indexes = sorted(root.glob("half/*.idx.npy"))
    assert len(indexes) >= 4
    for path in indexes[::2]:
        path.unlink()
    return root


def arguments(inputs: Path, output: Path, cache: str | None, flags: list[str], model: str) -> list[str]:
    given = {
        "model": inputs / model,
        "data": inputs / "data",
        "output": output,
        "ds_config": REPOSITORY / "ds_configs" / "zero2.json",
        "window.budgets": [12, 16],
        "window.sinks": [0, 4],
        "train.max_steps": MAX_STEPS,
        "train.global_batch_size": 4,
        "train.learning_rate": 0.01,
        "train.base_dtype": "float32",
        "train.loss_chunk_size": 16,
    }
    if cache is not None:
        given["teacher_cache"] = inputs / cache
    return [*(f"--{name}={value}" for name, value in given.items()), *flags]


@pytest.fixture(scope="module")
def folder(inputs, tmp_path_factory) -> Path:
    """The run folders of all RUNS, by name."""
    folder, runs = tmp_path_factory.mktemp("runs"), []
    for name, parts in RUNS.items():
        for number, (cache, flags) in enumerate(parts):
            model = "big_teacher" if "big" in name else "teacher"
            stop_after = SWITCH if number == 0 and len(parts) == 2 else None
            runs.append((arguments(inputs, folder / name, cache, flags, model), stop_after))
    (folder / "runs.json").write_text(json.dumps(runs))
    finished = run_ranks(Path(cached_runs.__file__), [folder / "runs.json"], folder, timeout=200)
    assert [f.returncode for f in finished] == [0, 0], finished[0].output[-3000:] + finished[1].output[-3000:]
    return folder


@pytest.fixture(scope="module")
def rows(folder) -> dict[str, list[dict]]:
    """metrics.jsonl of every run."""
    return {name: read_metrics(folder / name / "metrics.jsonl") for name in RUNS}


def losses(rows: list[dict]) -> list[float]:
    return [row["loss/kl"] for row in rows]


@pytest.mark.parametrize(
    ("name", "due", "relative"),
    [
        ("fp32", "online", 1e-5),
        ("two samples a row", "online", 1e-5),
        ("zero3, half the shards", "online", 1e-5),
        ("online, then cached", "online", 1e-5),
        ("cached, then online", "online", 1e-5),
        ("fp32_in_bf16", "online", 5e-3),
        ("topk_all", "online", 5e-3),  # log-probabilities in float16
        # The same signals, but the prefixes go through the base in a row of their own, which rounds otherwise.
        ("bf16", "online bf16", 5e-3),
        ("big", "online big", 1e-5),
    ],
)
def test_losses_of_all_steps_are_those_with_the_teacher_on_the_fly(rows, name, due, relative):
    expected = losses(rows[due])
    assert len(expected) == (3 if "big" in due else MAX_STEPS)
    assert losses(rows[name]) == pytest.approx(expected, rel=relative)
    assert [row["data/positions"] for row in rows[name]] == [row["data/positions"] for row in rows[due]]
    assert min(row["optim/grad_norm"] for row in rows[due]) > 1e-3


def test_the_memories_act_at_the_end(folder):
    weights = load_file(folder / "fp32" / "adapter" / "model.safetensors")
    assert all(w.norm() > 0.1 for name, w in weights.items() if name.endswith("o_proj.weight"))


def test_a_part_of_a_vocabulary_of_151936_tokens_bounds_the_loss_from_below(rows):
    for part, whole in zip(losses(rows["big_topk"]), losses(rows["big"]), strict=True):
        assert 0 < part < whole


def test_metrics_say_for_how_many_samples_the_teacher_did_not_run(rows):
    total = [row["data/samples"] for row in rows["fp32"]]
    assert [row["teacher/cached_samples"] for row in rows["fp32"]] == total and sum(total) > 2 * MAX_STEPS
    half = [row["teacher/cached_samples"] for row in rows["zero3, half the shards"]]
    assert 0 < sum(half) < sum(total) and all(a <= b for a, b in zip(half, total, strict=True))
    switched = ["teacher/cached_samples" in row for row in rows["online, then cached"]]
    assert switched == [step >= SWITCH for step in range(MAX_STEPS)]


def test_the_data_has_answers_only_samples_that_training_reads(inputs, rows):
    dataset = PackedDataset(inputs / "data")
    assert any(dataset[index].loss_mask is not None for index in range(len(dataset)))
