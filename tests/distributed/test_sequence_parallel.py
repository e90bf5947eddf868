"""A micro-batch that several ranks hold together gives the loss and the gradients of one process, in float64."""

import json
from pathlib import Path

import pytest
import torch

from tests.distributed import sequence_cases
from tests.distributed.covering import covering
from tests.distributed.processes import run_ranks
from tests.distributed.sequence_cases import BATCHES, run_case

CELLS = ("gated_delta_net", "delta_net", "mamba2")
HEADS = {
    "ulysses": {2: [(4, 2), (6, 2), (7, 1)], 4: [(4, 1), (4, 2), (4, 4), (14, 2)]},
    "halo": {2: [(4, 2), (3, 1)], 4: [(4, 4), (6, 3), (3, 1)]},  # as it likes
}
SOURCES = {"ulysses": ("kl", "cached", "ce"), "halo": ("cached", "ce")}


def cases_of(mode: str, size: int) -> dict[str, dict]:
    names = ("mode", "cell", "heads", "batch", "source", "checkpointing")
    settings = [[mode], CELLS, HEADS[mode][size], list(BATCHES), SOURCES[mode], (False, True)]
    return covering(dict(zip(names, settings, strict=True)))


@pytest.fixture(scope="module", params=(2, 4))
def outcome(request, tmp_path_factory) -> tuple[dict[str, dict], dict[str, dict]]:
    folder = tmp_path_factory.mktemp("sequence")
    cases = cases_of("ulysses", request.param) | cases_of("halo", request.param)
    (folder / "cases.json").write_text(json.dumps(cases))
    arguments = [folder / "cases.json", folder / "results.pt"]
    finished = run_ranks(Path(sequence_cases.__file__), arguments, folder, num_ranks=request.param)
    assert all(f.returncode == 0 for f in finished), finished[0].output[-3000:]
    return cases, torch.load(folder / "results.pt", weights_only=True)


def test_loss_and_gradients_are_those_of_one_process(outcome):
    cases, results = outcome
    for name, case in cases.items():
        loss, gradients = run_case(case, None)
        found = results[name]
        if BATCHES[case["batch"]][0][1] is None:
            assert found["loss"] == 0 and all(found[n].abs().max() == 0 for n in gradients)
            continue
        assert abs(found["loss"] - loss) <= 1e-10 * loss, name
        for parameter, gradient in gradients.items():
            assert gradient.norm() > 0, (name, parameter)
            assert (found[parameter] - gradient).norm() <= 1e-10 * gradient.norm(), (name, parameter)


def test_the_memories_of_these_cases_act():
    for cell in CELLS:
        case = {"cell": cell, "heads": (4, 2), "batch": "packed", "source": "kl", "checkpointing": False}
        loss, blind = (run_case(case, None, use_memory)[0] for use_memory in (True, False))
        assert abs(loss - blind) > 1e-2 * blind
