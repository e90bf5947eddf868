"""A small run of launchers/train.py that many tests start in many ways, and what they look at afterwards."""

import json
import time
from pathlib import Path

from pipeline.metrics.logger import read_metrics
from tests.distributed.processes import REPOSITORY, Finished
from tests.killing import marked_processes
from tests.training.synthetic import make_data, make_model

LONG, SHORT = [48], [12, 20, 16]  # SHORT documents fit into every budget: nothing of them is supervised
MAX_STEPS, GLOBAL_BATCH, SAVE_EVERY = 30, 4, 7
LAST = Path("checkpoints") / f"step-{MAX_STEPS:07d}" / "tensors.safetensors"


def make_inputs(root: Path) -> Path:
    """A folder with model, data and recipe.yaml."""
    make_data(root / "data", make_model(root / "model"), [LONG, SHORT, SHORT, [40, 8], SHORT, SHORT] * 4, seq_len=48)
    recipe = {
        "window": {"budgets": [20, 24], "sinks": [0, 2, 4], "inference_sinks": 2, "inference_window": 14},
        "train": {
            "max_steps": MAX_STEPS,
            "global_batch_size": GLOBAL_BATCH,
            "learning_rate": 0.01,
            "save_every": SAVE_EVERY,
            "base_dtype": "float32",
            "loss_chunk_size": 16,
        },
    }
    (root / "recipe.yaml").write_text(json.dumps(recipe))
    return root


def arguments(inputs: Path, output: Path, *flags: str, zero: str = "zero2", **replaced: Path) -> list[object]:
    named = {"model": inputs / "model", "data": inputs / "data", "output": output, **replaced}
    pairs = [text for name, value in named.items() for text in (f"--{name}", value)]
    config = ["--config", inputs / "recipe.yaml", "--ds_config", REPOSITORY / "ds_configs" / f"{zero}.json"]
    return [*config, *pairs, *flags]


def mathematics(folder: Path) -> list[dict]:
    """The rows of metrics.jsonl without what depends on the machine."""
    return [
        {key: value for key, value in row.items() if not key.startswith(("perf/", "mem/", "comm/"))}
        for row in read_metrics(folder / "metrics.jsonl")
    ]


def assert_same_run(output: Path, uninterrupted: Path) -> None:
    """To the last bit, in numbers, weights and moments."""
    assert mathematics(output) == mathematics(uninterrupted)
    assert (output / LAST).read_bytes() == (uninterrupted / LAST).read_bytes()
    adapter = Path("adapter") / "model.safetensors"
    assert (output / adapter).read_bytes() == (uninterrupted / adapter).read_bytes()


def assert_one_line(finished: Finished, *parts: str) -> None:
    assert finished.returncode == 2, finished.output[-2000:]
    lines = [line for line in finished.output.splitlines() if line.startswith("error")]
    assert len(lines) == 1 and "Traceback" not in finished.output, finished.output[-2000:]
    for part in parts:
        assert part in lines[0], lines[0]


def wait_for_step(folder: Path, step: int, deadline: float) -> None:
    while len(read_metrics(folder / "metrics.jsonl")) < step:
        assert time.monotonic() < deadline, "the run did not get there"
        time.sleep(0.005)


def rank_process(mark: str, rank: int) -> int:
    """The process of that rank in a run whose launcher was started with `mark`."""
    variables = {f"{name}={rank}".encode() for name in ("RANK", "PMI_RANK")}
    found = [
        pid for pid in marked_processes(mark) if variables & set(Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"))
    ]
    assert len(found) == 1, found
    return found[0]
