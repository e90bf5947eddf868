"""SIGTERM to a launcher that does what is missing: one line, nothing that stands in the way of the same command."""

import pytest

from tests.launchers.conftest import REPOSITORY, launch

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("script", "instant"),
    [
        ("prepare.py", ["pipeline.data.shard_io:publish", 1]),
        ("cache_teacher.py", ["pipeline.teacher.capture:extract_signal", 2]),
        ("run_eval.py", ["pipeline.evaluation.records:EvaluationFolder.write", 2]),
    ],
)
def test_sigterm_is_one_line_and_the_same_command_goes_on(tiny, tmp_path, script, instant):
    output = tmp_path / "out"
    flags = {
        "prepare.py": ["--inputs", REPOSITORY / "README.md", "--tokenizer", tiny.base, "--seq_len", 96],
        "cache_teacher.py": ["--model", tiny.base, "--data", tiny.held_out, "--signal", "hidden", "--min_budget", 32],
        "run_eval.py": ["--model", tiny.adapter, "--data", tiny.held_out, "--suites", "heldout", "--window_size", 12],
    }[script]
    command = [*flags, "--output", output]
    stopped = launch("../tests/signalled_run.py", REPOSITORY / "launchers" / script, *instant, "SIGTERM", 0, *command)
    assert stopped.returncode == 143, stopped.stderr
    assert stopped.stderr.count("SIGTERM") == 1 and "Traceback" not in stopped.stderr
    assert "\nSIGTERM: ends now; what is finished is kept, and the same command goes on from there\n" in stopped.stderr
    assert not list(output.glob(".owner*"))
    done = launch(script, *command)
    assert done.returncode == 0, done.stderr
