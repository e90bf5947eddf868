"""Ranks that share a row's heads retain the tokens that one process retains: outputs, losses, gradients in float64."""

import json
from pathlib import Path

import pytest
import torch

from pipeline.distributed.head_shares import share_heads
from tests.distributed import retained_cases
from tests.distributed.covering import covering
from tests.distributed.processes import run_ranks
from tests.distributed.retained_cases import HEADS, ROWS, distil, evicting, run_alone

CELLS = ("gated_delta_net", "delta_net", "mamba2")
TOLERANCE = 1e-9


def cases_of(size: int) -> dict[str, dict]:
    rows = list(ROWS) if size == 2 else ["M 3 C 4", "packed"]
    cases = covering({"heads": HEADS[size], "cell": CELLS, "row": rows, "scorer": ("acting", "zero")})
    trained = {"row": ["M 3 C 1", "M 8 C 4"], "scorer": ["acting"], "source": ["kl", "ce"]}
    trained["checkpointing"] = [False, True]
    return cases | covering({"heads": HEADS[size], "cell": CELLS[::size], **trained})


@pytest.fixture(scope="module", params=HEADS)
def outcome(request, tmp_path_factory) -> tuple[dict[str, dict], list[dict]]:
    folder, cases = tmp_path_factory.mktemp("retained"), cases_of(request.param)
    (folder / "cases.json").write_text(json.dumps(cases))
    arguments = [folder / "cases.json", folder]
    finished = run_ranks(Path(retained_cases.__file__), arguments, folder, num_ranks=request.param)
    assert all(f.returncode == 0 for f in finished), finished[0].output[-3000:]
    return cases, [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(request.param)]


def check(found: dict[str, torch.Tensor], due: dict[str, torch.Tensor], name: object) -> None:
    assert found.keys() == due.keys()
    for key, value in due.items():
        assert value.norm() > 0, (name, key)
        assert (found[key] - value).norm() <= TOLERANCE * value.norm(), (name, key)


def test_outputs_losses_and_gradients_are_those_of_one_process(outcome):
    cases, results = outcome
    for name, case in cases.items():
        if "source" in case:
            check(results[0][name], distil(case, None), name)
            continue
        due = run_alone(case)
        check(results[0][name, False], due, name)
        check(results[0][name, True], due | {"output": due["output"][evicting(case["row"])[1]]}, name)


def test_ranks_that_share_a_head_drop_the_same_tokens_even_where_their_own_scores_would_differ(outcome):
    results = outcome[1]
    shares = share_heads(*HEADS[len(results)][0], len(results)).key_value
    orders = list(zip(*(facts["orders"] for facts in results), strict=True))
    assert len(orders) == 2 * 2  # layers, documents that evict
    for of_ranks in orders:
        of_head = {}
        for order, (first, end) in zip(of_ranks, shares, strict=True):
            assert order.shape[1] == end - first == 1
            assert torch.equal(of_head.setdefault(first, order), order)


def test_where_nothing_is_retained_scorers_cost_nothing_and_change_no_bit(outcome):
    for facts in outcome[1]:
        (bytes_without, without), (bytes_with, with_scorers) = facts["sent"]
        assert bytes_without == bytes_with > 0 and torch.equal(without, with_scorers)


def test_the_scorers_of_these_cases_act():
    for row in ROWS:
        case = {"cell": "delta_net", "heads": (3, 1), "row": row}
        acting, zero = (run_alone(case | {"scorer": scorer})["output"] for scorer in ("acting", "zero"))
        assert (acting - zero).abs().max() > 1e-2, row
