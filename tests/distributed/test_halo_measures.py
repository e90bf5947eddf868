"""Bytes sent against their formulas, memory and time of a step in both modes of sequence parallelism."""

import itertools
import json
from pathlib import Path

import pytest

from tests.distributed import halo_measures
from tests.distributed.halo_measures import HEAD_DIM, NUM_HEADS, NUM_KEY_VALUE_HEADS, NUM_LAYERS, WINDOW
from tests.distributed.processes import run_ranks
from tests.drill import record

LENGTHS, FLOAT = (1024, 4096, 16384), 4
NUM_GATES = {"gated_delta_net": 2, "mamba2": 1}


def halo_bytes(cell: str, size: int, length: int) -> int:
    """All ranks' in a step, of a document with more than the lossless budget on each: its length does not appear."""
    state = HEAD_DIM**2
    transition = 1 if cell == "mamba2" else state
    kept = (size - 1) * WINDOW.lossless_budget * 2 * NUM_KEY_VALUE_HEADS * HEAD_DIM
    gates = (size - 1) * WINDOW.window_size * NUM_GATES[cell] * NUM_HEADS
    states = NUM_HEADS * (size * (size - 1) // 2 * state + (size - 1) * (size - 2) // 2 * transition)
    return FLOAT * (2 * NUM_LAYERS * (kept + gates + states) - kept)  # the first layer's keys need no gradients


def ulysses_bytes(cell: str, size: int, length: int) -> int:
    """The same; Mamba2's norm sums a number a token over the ranks."""
    budget, rest = WINDOW.lossless_budget, length - WINDOW.lossless_budget
    qkv, out = (NUM_HEADS + 2 * NUM_KEY_VALUE_HEADS) * HEAD_DIM, NUM_HEADS * HEAD_DIM
    gates = NUM_GATES[cell] * NUM_HEADS * length + NUM_HEADS * rest
    norm = 2 * rest * size if cell == "mamba2" else 0  # a ring's all-reduce
    once = budget * (qkv + out)  # the prefixes', without gradients
    step = NUM_LAYERS * (once + 2 * (rest * (qkv + out) + gates + norm)) - rest * qkv
    return FLOAT * step * (size - 1) // size


@pytest.mark.drill
@pytest.mark.timeout(1800)
def test_bytes_memory_and_seconds_of_a_step(tmp_path):
    table = {}
    for size in (1, 2, 4):
        folder = tmp_path / str(size)
        folder.mkdir()
        modes = ("alone",) if size == 1 else ("halo", "ulysses")
        cases = {f"{m} {c} {n}": {"mode": m, "cell": c, "length": n}
                 for m, c, n in itertools.product(modes, NUM_GATES, LENGTHS)}  # fmt: skip
        (folder / "cases.json").write_text(json.dumps(cases))
        arguments = [folder / "cases.json", folder / "results.json"]
        script = Path(halo_measures.__file__)
        finished = run_ranks(script, arguments, folder, num_ranks=size, timeout=800)
        assert all(f.returncode == 0 for f in finished), finished[0].output[-3000:]
        found = json.loads((folder / "results.json").read_text())
        for name, case in cases.items():
            if size > 1:
                formula = halo_bytes if case["mode"] == "halo" else ulysses_bytes
                assert found[name]["sent"] == formula(case["cell"], size, case["length"]), (size, name)
        table[f"{size} ranks"] = found
    record("sequence_parallel_modes", {"window": [WINDOW.num_sink_tokens, WINDOW.window_size], **table})
