"""`python -m pipeline.doctor` on this machine, and that it can fail."""

import subprocess
import sys

import pytest
import torch

from pipeline.doctor import checks


@pytest.mark.slow
def test_the_doctor_passes_here_and_says_what_it_left_out(tmp_path):
    command = [sys.executable, "-m", "pipeline.doctor", "--output", str(tmp_path / "doctor.html")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ok        20 training steps" in done.stdout and "failed " not in done.stdout
    page = (tmp_path / "doctor.html").read_text()
    assert "needs CUDA" in page and "deepspeed" in page and "http" not in page


def test_a_kernel_that_is_wrong_fails(monkeypatch):
    wrong = checks.sink_window_attention
    monkeypatch.setattr(checks, "sink_window_attention", lambda *a, **k: wrong(*a, **k) * 1.01)
    found = {check.name: check.status for check in checks.run_checks(torch.device("cpu"))}
    assert [status for name, status in found.items() if name.startswith("sinks + window")] == ["failed"]
    assert list(found.values()).count("failed") == 1
