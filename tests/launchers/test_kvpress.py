"""Retained tokens beside a press of NVIDIA's kvpress at the same budget, on SmolLM2-135M and held-out text."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from pipeline.evaluation.bootstrap import paired_interval
from tests.drill import record
from tests.launchers.conftest import REPOSITORY
from tests.launchers.retained_study import STUDY, prepare
from tests.launchers.test_retained_study import CASES, train_case

REQUIREMENTS = ("kvpress==0.5.5", "cachetools==5.5.2", "fire==0.6.0", "termcolor==3.3.0", "peft==0.21.2")
NUM_DOCUMENTS = 16


@pytest.mark.drill
@pytest.mark.timeout(3 * 3600)
def test_retained_tokens_beside_kvpress() -> None:
    """kvpress pins an older transformers than ours; the press that is used here runs with ours."""
    site = STUDY / "kvpress"
    if not site.is_dir():
        install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(site), *REQUIREMENTS]
        subprocess.run(install, check=True, timeout=600)
    case, output = CASES[0], STUDY / "kvpress.json"
    train_case(case, 64)
    adapter = STUDY / f"{case.seq_len}-{case.window}-64/train/adapter"
    script = REPOSITORY / "tests/launchers/kvpress_stream.py"
    command = [sys.executable, script, adapter, prepare(case.seq_len) / "heldout", NUM_DOCUMENTS, output]
    paths = os.pathsep.join(map(str, (REPOSITORY, site)))
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    subprocess.run([str(part) for part in command], check=True, timeout=2 * 3600, env=environment)
    rows = json.loads(output.read_text())
    names = [name for name in rows[0] if name not in ("tokens", "window")]
    sums = {name: np.array([row[name] for row in rows]) for name in ("tokens", "window", *names)}
    shares = {name: 1 - sums[name].sum() / sums["window"].sum() for name in names}
    pairs = {name: compare(sums, name) for name in names if name != "kvpress"}
    record("retained_kvpress", {"press": "SnapKVPress", "recovered": shares, "kvpress_less": pairs, "documents": rows})


def compare(sums: dict[str, np.ndarray], name: str) -> dict[str, object]:
    """KL with kvpress less that of a variant, in nats per token."""
    of_documents = np.stack([sums[column] for column in ("tokens", "kvpress", name)], 1)

    def difference(totals: np.ndarray) -> np.ndarray:
        return (totals[:, 1] - totals[:, 2]) / totals[:, 0]

    better = int((sums[name] < sums["kvpress"]).sum())
    return {
        "difference": float(difference(of_documents.sum(0)[None])[0]),
        "difference_ci95": paired_interval(of_documents, difference, seed=0),
        "documents": f"{better} of {len(of_documents)}",
    }
