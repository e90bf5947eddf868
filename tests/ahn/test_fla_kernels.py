"""The path a GPU takes: fla's Triton kernels through our dispatch, under Triton's interpreter."""

import json
import os
import subprocess
import sys

import pytest

CASES = [
    f"{cell}/{case}"
    for cell in ("gated_delta_net", "delta_net", "mamba2")
    for case in ("whole", "packed", "decode", "one", "wide")
]


@pytest.fixture(scope="module")
def errors(tmp_path_factory):
    result = tmp_path_factory.mktemp("fla") / "errors.json"
    command = [sys.executable, "-m", "tests.ahn.interpreter_cases", str(result)]
    done = subprocess.run(
        command, env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True, timeout=250
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(result.read_text())


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_kernels_agree_with_the_torch_forms_outputs_and_gradients(errors, case):
    # the chunked delta rule refuses float32
    half_precision = case.startswith("delta_net") and case != "delta_net/decode"
    assert errors[case] < (2e-3 if half_precision else 1e-5)
