"""Retained tokens on SmolLM2-135M and held-out text: how much of what the window loses they win back, beside a wider
window, other choices of as many tokens, and another document's."""

from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.drill import record
from tests.launchers.retained_study import STUDY, evaluate, prepare, train


class Case(NamedTuple):
    """`retained`: each M, trained on its own. `steps` of the cell after the scorers were fitted; 0: scorers alone."""

    seq_len: int
    window: int
    retained: tuple[int, ...]
    steps: int
    documents: int


CASES = (
    Case(1024, 96, (64, 192), 36, 16),
    Case(2048, 480, (192,), 36, 16),
    Case(4096, 864, (128,), 0, 16),
    Case(4096, 960, (32,), 0, 16),
    Case(8192, 1760, (256,), 0, 8),
    Case(8192, 1952, (64,), 0, 8),
)
"""The last four: M / W = 1/8 and 1/32, with W a quarter of the document."""


@pytest.mark.drill
@pytest.mark.timeout(3 * 3600)
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.seq_len}-{case.window}")
def test_retained_tokens_win_back_what_the_window_loses(case) -> None:
    """Kept in runs/retained: a drill that was stopped goes on."""
    found = {str(m): measure(case, m) for m in case.retained}
    record(f"retained_{case.seq_len}_window{case.window}", {"case": case._asdict(), "retained": found})
    for m, summary in found.items():
        own = summary["recovered"][f"retained{m}"]
        assert own["against"][f"random{m}"]["difference_ci95"][0] > 0
        if case.seq_len <= 2048:
            assert own["against"][f"wider{m}"]["difference_ci95"][0] > 0
            for control in summary["controls"].values():
                assert all(
                    found["share"] < 0.1 for row, found in control["recovered"].items() if row.startswith("foreign")
                )


def measure(case: Case, num_retained: int) -> dict[str, Any]:
    """The summary of suite `heldout`, beside how the scorers' fit went."""
    fit, output = train_case(case, num_retained)
    variants = ["full", "window", *(f"{name}{num_retained}" for name in ("wider", "random", "received", "retained"))]
    variants += [f"retained{num_retained}_ahn"] if case.steps else []
    variants += [f"oracle{num_retained}"] if case.seq_len <= 2048 else []
    flags = ["--data", prepare(case.seq_len) / "heldout", "--max_documents", case.documents, "--pieces_per_document", 1]
    flags += ["--suites", "heldout", "--variants", *variants]
    found = evaluate(output / "train/adapter", output / "evaluation", case.window, *flags)["heldout"]
    return {"fit": fit, **found}


def train_case(case: Case, num_retained: int) -> tuple[dict[str, Any], Path]:
    """Facts of the fit, and the folder that holds `train`."""
    output = STUDY / f"{case.seq_len}-{case.window}-{num_retained}"
    data = prepare(case.seq_len) / "train"
    return train(data, output / "train", case.window, num_retained, case.steps), output
