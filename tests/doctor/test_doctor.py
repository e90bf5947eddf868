"""`python -m pipeline.doctor` on this machine, and that it can fail."""

import subprocess
import sys

import pytest
import torch

from pipeline.config import AccountingConfig, DoctorConfig, FamiliesConfig, parse_cli
from pipeline.doctor import checks, families
from pipeline.errors import UserError


@pytest.mark.slow
def test_the_doctor_passes_here_and_says_what_it_left_out(tmp_path):
    command = [sys.executable, "-m", "pipeline.doctor", "--output", str(tmp_path / "doctor.html")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ok        20 training steps" in done.stdout and "failed " not in done.stdout
    page = (tmp_path / "doctor.html").read_text()
    assert "ok        retained tokens (S = 16, R = 48, M = 24, C = 8)" in done.stdout
    assert "needs CUDA" in page and "deepspeed" in page and "http" not in page


def test_a_kernel_that_is_wrong_fails(monkeypatch):
    wrong = checks.sink_window_attention
    monkeypatch.setattr(checks, "sink_window_attention", lambda *a, **k: wrong(*a, **k) * 1.01)
    found = {check.name: check.status for check in checks.run_checks(torch.device("cpu"))}
    assert [status for name, status in found.items() if name.startswith("sinks + window")] == ["failed"]
    assert list(found.values()).count("failed") == 1


@pytest.mark.parametrize(
    ("name", "break_it"),
    [
        ("drop_order", lambda right: lambda scores, m, c: right(-scores, m, c)),  # the worst are kept
        ("drop_order", lambda right: lambda scores, m, c: right(scores.flip(-1), m, c)),
        ("retained_attention", lambda right: lambda *a, **k: right(*a, **k) * 1.01),
    ],
)
def test_retained_tokens_that_are_wrong_fail(monkeypatch, name, break_it):
    monkeypatch.setattr(checks, name, break_it(getattr(checks, name)))
    found = {check.name: check.status for check in checks.run_checks(torch.device("cpu"))}
    (failed,) = [name for name, status in found.items() if status == "failed"]
    assert failed.startswith("retained tokens (S = 16, R = 48, M = 24, C = 8): ")


@pytest.mark.parametrize(
    ("cls", "flag"), [(FamiliesConfig, "output"), (DoctorConfig, "output"), (AccountingConfig, "json")]
)
def test_a_file_that_cannot_be_written_is_refused_before_the_work(tmp_path, cls, flag):
    with pytest.raises(UserError, match=f"^--{flag} .*there is no folder .*none; make it, or name another file$"):
        parse_cli(cls, [f"--{flag}", str(tmp_path / "none/file")])
    with pytest.raises(UserError, match=f"^--{flag} .*: is a folder; name a file$"):
        parse_cli(cls, [f"--{flag}", str(tmp_path)])
    assert getattr(parse_cli(cls, [f"--{flag}", str(tmp_path / "file")]), flag) == tmp_path / "file"


def test_help_calls_the_table_of_families_as_one_starts_it(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["families.py", "--help"])
    with pytest.raises(SystemExit):
        families.main()
    assert capsys.readouterr().out.startswith("usage: python -m pipeline.doctor.families ")
