"""Retained tokens on SmolLM2-135M and held-out text: how much of what the window loses they win back, beside a wider
window, other choices of as many tokens, and another document's."""

import sys
from functools import cache
from json import loads
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from pipeline.distributed.launch import free_port
from tests.distributed.processes import DEEPSPEED, run
from tests.drill import record
from tests.launchers.conftest import REPOSITORY

STUDY = REPOSITORY / "runs/retained"
MODEL = REPOSITORY / ".cache/smollm2-135m"
SINKS = 32


class Case(NamedTuple):
    """`retained`: each M, trained on its own. `steps` of the cell after the scorers were fitted; 0: scorers alone."""

    seq_len: int
    window: int
    retained: tuple[int, ...]
    steps: int
    documents: int

    @property
    def name(self) -> str:
        return f"retained_{self.seq_len}"


CASES = (
    Case(1024, 96, (64, 192), 36, 16),
    Case(2048, 480, (192,), 36, 16),
    Case(4096, 864, (128,), 0, 16),
    Case(4096, 960, (32,), 0, 16),
    Case(8192, 1760, (256,), 0, 8),
    Case(8192, 1952, (64,), 0, 8),
)
"""The last four: M / W = 1/8 and 1/32 with W a quarter of the document."""


@pytest.mark.drill
@pytest.mark.timeout(3 * 3600)
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.seq_len}-{case.window}")
def test_retained_tokens_win_back_what_the_window_loses(case) -> None:
    """Kept in runs/retained: a drill that was stopped goes on."""
    found = {str(m): measure(case, m) for m in case.retained}
    record(f"{case.name}_window{case.window}", {"case": case._asdict(), "retained": found})
    for m, summary in found.items():
        own = summary["recovered"][f"retained{m}"]
        assert own["against"][f"random{m}"]["difference_ci95"][0] > 0
        if case.seq_len <= 2048:
            assert own["against"][f"wider{m}"]["difference_ci95"][0] > 0
            assert summary["controls"][f"retained{m}"]["recovered"][f"foreign_retained{m}"]["share"] < 0.1


def measure(case: Case, num_retained: int) -> dict[str, Any]:
    """The summary of suite `heldout`, beside how the scorers' fit went."""
    data, model = prepare(case.seq_len), ["--model", MODEL]
    output = STUDY / f"{case.seq_len}-{case.window}-{num_retained}"
    settings = ["--config", REPOSITORY / "launchers/recipes/demo.yaml"]
    settings += ["--ds_config", REPOSITORY / "ds_configs/zero2.json"]
    settings += ["--window.budgets", [SINKS + case.window], "--window.inference_window", case.window]
    settings += ["--window.retained", [num_retained]]
    settings += ["--train.max_steps", case.steps] if case.steps else ["--train.loss", "retention"]
    script("train.py", *settings, *model, "--data", data / "train", "--output", output / "train", ranks=2)
    variants = ["full", "window", *(f"{name}{num_retained}" for name in ("wider", "random", "received", "retained"))]
    variants += [f"retained{num_retained}_ahn"] if case.steps else []
    variants += [f"oracle{num_retained}"] if case.seq_len <= 2048 else []
    scored = ["--model", output / "train/adapter", "--base", MODEL, "--num_sink_tokens", SINKS]
    scored += ["--window_size", case.window, "--data", data / "heldout", "--max_documents", case.documents]
    scored += ["--pieces_per_document", 1, "--suites", "heldout", "--variants", *variants]
    script("run_eval.py", *scored, "--output", output / "evaluation", ranks=2)
    facts = loads((output / "train/scorers.json").read_text())
    fit = {name: facts[name] for name in ("samples", "candidates", "forward_s", "fit_s")}
    return {"fit": fit, **loads((output / "evaluation/report.json").read_text())["heldout"]}


@cache
def prepare(seq_len: int) -> Path:
    """The demo's documents in samples of `seq_len` tokens: folders `train` and `heldout`."""
    folder = STUDY / f"data-{seq_len}"
    script("demo/fetch_model.py", "--output", MODEL)
    script("demo/list_sources.py", "--output", STUDY / "sources")
    for split in ("train", "heldout"):
        inputs = ["--inputs", f"@{STUDY}/sources/{split}.txt", "--tokenizer", MODEL, "--output", folder / split]
        script("prepare.py", *inputs, "--seq_len", seq_len, "--num_workers", 2)
    return folder


def script(name: str, *flags: object, ranks: int | None = None) -> None:
    """A launcher as a user runs it; one that was stopped goes on."""
    start = [sys.executable] if ranks is None else [DEEPSPEED, "--num_gpus", ranks, "--master_port", free_port()]
    log = STUDY / f"{Path(name).stem}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    done = run([*start, REPOSITORY / "launchers" / name, *flags], log, timeout=3 * 3600)
    assert done.returncode == 0, done.output[-3000:]
