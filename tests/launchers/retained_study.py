"""What the drills of retained tokens share: SmolLM2-135M, the demo's documents, launchers as a user runs them."""

import sys
from functools import cache
from json import loads
from pathlib import Path
from typing import Any

from pipeline.distributed.launch import free_port
from tests.distributed.processes import DEEPSPEED, run
from tests.launchers.conftest import REPOSITORY

STUDY = REPOSITORY / "runs/retained"
MODEL = REPOSITORY / ".cache/smollm2-135m"
SINKS = 32


@cache
def list_sources() -> Path:
    """Fetches the model and lists the demo's documents: folder of train.txt and heldout.txt."""
    script("demo/fetch_model.py", "--output", MODEL)
    script("demo/list_sources.py", "--output", STUDY / "sources")
    return STUDY / "sources"


@cache
def prepare(seq_len: int) -> Path:
    """The demo's documents in samples of `seq_len` tokens: folders `train` and `heldout`."""
    folder = STUDY / f"data-{seq_len}"
    for split in ("train", "heldout"):
        inputs = ["--inputs", f"@{list_sources() / split}.txt", "--tokenizer", MODEL, "--output", folder / split]
        script("prepare.py", *inputs, "--seq_len", seq_len, "--num_workers", 2)
    return folder


def train(data: Path, output: Path, window: int, retained: int, steps: int, *flags: object) -> dict[str, Any]:
    """The demo's recipe with this window; facts of the scorers' fit. `steps` of the cell after it, or 0."""
    settings = ["--config", REPOSITORY / "launchers/recipes/demo.yaml"]
    settings += ["--ds_config", REPOSITORY / "ds_configs/zero2.json", "--model", MODEL]
    settings += ["--window.budgets", [SINKS + window], "--window.inference_window", window]
    settings += ["--window.retained", [retained]]
    settings += ["--train.max_steps", steps] if steps else ["--train.loss", "retention"]
    script("train.py", *settings, "--data", data, "--output", output, *flags, ranks=2)
    facts = loads((output / "scorers.json").read_text())
    return {name: facts[name] for name in ("samples", "candidates", "forward_s", "fit_s")}


def evaluate(adapter: Path, output: Path, window: int, *flags: object) -> dict[str, Any]:
    """report.json of the suites and variants that `flags` name."""
    model = ["--model", adapter, "--base", MODEL, "--num_sink_tokens", SINKS, "--window_size", window]
    script("run_eval.py", *model, *flags, "--output", output, ranks=2)
    return loads((output / "report.json").read_text())


def script(name: str, *flags: object, ranks: int | None = None) -> None:
    """A launcher as a user runs it; one that was stopped goes on."""
    start = [sys.executable] if ranks is None else [DEEPSPEED, "--num_gpus", ranks, "--master_port", free_port()]
    log = STUDY / f"{Path(name).stem}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    done = run([*start, REPOSITORY / "launchers" / name, *flags], log, timeout=3 * 3600)
    assert done.returncode == 0, done.output[-3000:]
