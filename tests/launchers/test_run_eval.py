"""run_eval.py as a user runs it: one process, several, stopped and started again, and what it refuses."""

import json
import shutil

from tests.distributed.processes import run
from tests.launchers.conftest import REPOSITORY, launch


def read(folder) -> dict:
    return json.loads((folder / "report.json").read_text())


def comparable(summary: dict) -> dict:
    """What does not depend on time and machine."""
    return {name: summary[name] for name in ("kl", "ppl", "num_documents", "num_tokens", "window")}


def test_two_ranks_and_a_restart_give_one_processs_report(tiny, tmp_path) -> None:
    flags = ["--model", tiny.adapter, "--data", tiny.held_out]
    done = launch("run_eval.py", *flags, "--output", tmp_path / "one")
    assert done.returncode == 0, done.stderr
    alone = read(tmp_path / "one")
    assert alone["num_documents"] == 4 and alone["kl"]["window"] > 0.01
    assert abs(alone["kl"]["ahn"] - alone["kl"]["window"]) > 0.01, "the memory does not act"
    assert f"{alone['kl']['ahn']:.4f}" in done.stdout and str(tmp_path / "one/report.html") in done.stdout

    torchrun = [
        shutil.which("torchrun", path=str(REPOSITORY / ".venv/bin")),
        "--standalone",
        "--nproc_per_node",
        2,
    ]
    script = REPOSITORY / "launchers/run_eval.py"
    ranks = run([*torchrun, script, *flags, "--output", tmp_path / "two"], tmp_path / "two.log")
    assert ranks.returncode == 0, ranks.output
    assert comparable(read(tmp_path / "two")) == comparable(alone)

    records = sorted((tmp_path / "one/records").iterdir())
    kept = {path: path.stat().st_mtime_ns for path in records[::2]}
    for path in [*records[1::2], tmp_path / "one/report.json"]:
        path.unlink()
    assert launch("run_eval.py", *flags, "--output", tmp_path / "one").returncode == 0
    assert comparable(read(tmp_path / "one")) == comparable(alone)
    assert all(path.stat().st_mtime_ns == written for path, written in kept.items())


def test_refuses_what_cannot_work_in_one_line(tiny, refused, tmp_path) -> None:
    output = ("--output", tmp_path / "out")
    data = ("--data", tiny.held_out)
    assert "no such folder" in refused("run_eval.py", "--model", tmp_path / "gone", *data, *output)
    assert "without a memory" in refused("run_eval.py", "--model", tiny.base, *data, *output)
    model = ("--model", tiny.adapter)
    assert "does not exist" in refused("run_eval.py", *model, "--data", tmp_path / "gone", *output)
    long = refused("run_eval.py", *model, *data, *output, "--window_size", 500)
    assert "W = 504" in long and "--window_size" in long
    assert "no metrics.jsonl" in refused("run_eval.py", *model, *data, *output, "--run", tmp_path)
    assert "--max_documents: must be >= 1" in refused("run_eval.py", *model, *data, *output, "--max_documents", 0)
    assert "wndow" in refused("run_eval.py", *model, *data, *output, "--wndow", 3)
    assert not (tmp_path / "out").exists()


def test_data_of_another_tokenizer_is_refused(tiny, refused, tmp_path) -> None:
    other = tmp_path / "base"
    shutil.copytree(tiny.base, other)
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    tokenizer["model"]["merges"].pop()
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    flags = ("--model", tiny.adapter, "--base", other, "--data", tiny.held_out, "--output", tmp_path / "out")
    assert "was tokenised with" in refused("run_eval.py", *flags)
