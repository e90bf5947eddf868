"""run_eval.py as a user runs it: one process, several, killed and started again, and what it refuses."""

import json
import os
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from pipeline.distributed.launch import free_port
from tests.drill import record
from tests.killing import kill_when
from tests.launchers.conftest import REPOSITORY, Tiny, launch
from tests.tiny_models import TINY_WINDOW

SCRIPT = REPOSITORY / "launchers/run_eval.py"
NOT_TIMED = ["--suites", "heldout", "needles", "absorbed", "probing"]
SMALL = ["--needles.tasks", "passkey", "--needles.lengths", 300, 500, "--needles.depths", 0, 1, "--absorbed.facts", 2,
         "--absorbed.documents", 2, "--absorbed.windows", 1, 3, "--probing.documents", 2]  # fmt: skip


def flags_of(tiny: Tiny, output: Path) -> list[object]:
    return ["--model", tiny.adapter, "--data", tiny.held_out, "--output", output, *NOT_TIMED, *SMALL]


def two_ranks(flags: Sequence[object]) -> list[str]:
    torchrun = Path(sys.executable).with_name("torchrun")
    rendezvous = ["--nproc_per_node", 2, "--master_port", free_port()]
    return [str(part) for part in [torchrun, *rendezvous, SCRIPT, *flags]]


def lines_of(folder: Path) -> list[tuple[str, str]]:
    """Suite and key of every whole line that any rank has written."""
    parts = [path.read_bytes() for path in (folder / "records").glob("*.jsonl")]
    entries = [json.loads(line) for part in parts for line in part[: part.rfind(b"\n") + 1].splitlines()]
    return [(entry["suite"], entry["key"]) for entry in entries]


def check_evictions(folder: Path, report: dict, printed: str) -> None:
    """Every record, summary and section, and the terminal, tell what was evicted."""
    budget, page = TINY_WINDOW.lossless_budget, (folder / "report.html").read_text()
    told = re.findall(r"^By the end of its prompt, .* have evicted ([\d,]+) to ([\d,]+) tokens", printed, re.MULTILINE)
    found = [[f"{each['evicted'][name]:,}" for name in ("min", "max")] for each in report.values()]
    assert [list(each) for each in told] == found, "one sentence a suite, in their order"
    records = [json.loads(line) for line in (folder / "examples.jsonl").read_text().splitlines()]
    for suite, found in report.items():
        evicted = found["evicted"]
        counts = np.concatenate([np.atleast_1d(r["evicted"]) for r in records if r["suite"] == suite])
        assert (evicted["min"], evicted["max"]) == (counts.min(), counts.max()) and evicted["share"] == 1
        assert f"have evicted {evicted['min']:,} to {evicted['max']:,} tokens" in page
    for each in records:
        if each["suite"] == "needles":
            assert each["evicted"] == each["length"] - budget
        elif each["suite"] == "heldout":
            assert each["evicted"] == each["length"] - budget > each["positions"][-1] - budget
        elif each["suite"] == "absorbed":
            assert np.diff(each["evicted"]).tolist() == [2 * TINY_WINDOW.window_size]  # from 1 window to 3
        elif "ids" in each:
            assert each["evicted"] == len(each["ids"]) - budget


@pytest.fixture(scope="module")
def alone(tiny: Tiny, tmp_path_factory) -> Path:
    """The evaluation of one process that nobody disturbed."""
    folder = tmp_path_factory.mktemp("alone") / "eval"
    done = launch("run_eval.py", *flags_of(tiny, folder))
    assert done.returncode == 0, done.stderr
    report = json.loads((folder / "report.json").read_text())
    kl = report["heldout"]["kl"]
    assert report["heldout"]["num_documents"] == 4 and kl["window"] > 0.01
    assert abs(kl["ahn"] - kl["window"]) > 0.01, "the memory does not act"
    assert abs(kl["memory_off"] - kl["window"]) < 1e-5
    check_evictions(folder, report, done.stdout)
    assert f"{kl['ahn']:.4f}" in done.stdout and str(folder / "report.html") in done.stdout
    assert (folder / "summary.txt").read_text() in done.stdout
    (start,) = json.loads((folder / "run.json").read_text())["starts"]
    assert start["commit"] and start["versions"]["transformers"] and "--suites" in start["command"]
    return folder


@pytest.mark.slow
def test_two_ranks_killed_and_a_process_that_goes_on_give_one_processs_report(tiny, alone, tmp_path) -> None:
    flags, total = flags_of(tiny, tmp_path / "eval"), len(lines_of(alone))
    assert kill_when(lambda: len(lines_of(tmp_path / "eval")) >= total // 3, [two_ranks(flags)], None)
    done_before = lines_of(tmp_path / "eval")
    assert total // 3 <= len(done_before) < total
    done = launch("run_eval.py", *flags)
    assert done.returncode == 0, done.stderr
    assert sorted(lines_of(tmp_path / "eval")) == sorted(lines_of(alone)), "an example was lost or run twice"
    for name in ("report.json", "examples.jsonl"):
        assert (tmp_path / "eval" / name).read_bytes() == (alone / name).read_bytes()


@pytest.mark.drill
@pytest.mark.timeout(1800)
def test_ten_kills_at_random_instants(tiny, alone, tmp_path) -> None:
    flags, total, kills = flags_of(tiny, tmp_path / "eval"), len(lines_of(alone)), []
    rng = random.Random(0)
    while len(kills) < 10:
        folder = tmp_path / f"eval{len(kills) // 5}"  # a second evaluation where five kills end the first
        flags = flags_of(tiny, folder)
        due = min(total - 1, len(lines_of(folder)) + rng.randrange(1, total // 5))
        only_one = rng if len(kills) % 2 else None
        if kill_when(lambda folder=folder, due=due: len(lines_of(folder)) >= due, [two_ranks(flags)], only_one):
            kills.append({"units_done": len(lines_of(folder)), "one_process": only_one is not None})
    for folder in (tmp_path / "eval0", tmp_path / "eval1"):
        assert launch("run_eval.py", *flags_of(tiny, folder)).returncode == 0
        assert sorted(lines_of(folder)) == sorted(lines_of(alone))
        assert (folder / "report.json").read_bytes() == (alone / "report.json").read_bytes()
    record("evaluation_kills", {"kills": kills, "units": total, "report_equals_the_undisturbed_one": True})


def test_refuses_what_cannot_work_in_one_line(tiny, refused, tmp_path) -> None:
    output = ("--output", tmp_path / "out")
    data = ("--data", tiny.held_out)
    assert "no such folder" in refused("run_eval.py", "--model", tmp_path / "gone", *data, *output)
    assert "--num_sink_tokens and --window_size" in refused("run_eval.py", "--model", tiny.base, *data, *output)
    assert "--model: give" in refused("run_eval.py", *data, *output)
    model = ("--model", tiny.adapter)
    assert "does not exist" in refused("run_eval.py", *model, "--data", tmp_path / "gone", *output)
    assert "no metrics.jsonl" in refused("run_eval.py", *model, *data, *output, "--run", tmp_path)
    assert "--max_documents: must be >= 1" in refused("run_eval.py", *model, *data, *output, "--max_documents", 0)
    assert "wndow" in refused("run_eval.py", *model, *data, *output, "--wndow", 3)
    assert "has one twice" in refused("run_eval.py", *model, *data, *output, "--variants", "ahn", "ahn")
    assert "--suites: expected one of 'heldout'" in refused("run_eval.py", *output, "--suites", "passages")
    assert "--data_root" in refused("run_eval.py", "--fetch", "lveval")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--window_size", 500), ("W = 504", "--window_size")),
        (
            ("--suites", "needles", "--window_size", 4096, "--needles.lengths", 600, 900),
            ("--needles.lengths 600 900: the longest prompt has 900 tokens", "--allow_no_evictions"),
        ),
        (("--suites", "heldout", "--variants", "full"), ("--variants", "heldout")),
        (("--suites", "probing", "--variants", "full", "window"), ("--suites probing", "--variants ahn, and")),
        (("--suites", "efficiency", "--variants", "memory_off"), ("--suites efficiency", "memory_off was asked for")),
        (
            ("--suites", "needles", "probing", "--variants", "memory_off"),
            ("--suites needles probing: nothing to measure", "`needles` needs one of --variants full", "`probing`"),
        ),
    ],
)
def test_refuses_what_only_a_suite_can_tell_before_it_loads_the_model(tiny, tmp_path, flags, words) -> None:
    files = ("--model", tiny.adapter, "--data", tiny.held_out, "--output", tmp_path / "out")
    done = launch("run_eval.py", *files, *flags)
    assert done.returncode == 2 and all(word in done.stderr for word in words), done.stderr
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1 and not (tmp_path / "out").exists()


def test_a_base_is_told_which_suites_it_has_nothing_for(tiny, tmp_path) -> None:
    flags = ("--model", tiny.base, "--data", tiny.held_out, "--num_sink_tokens", 4, "--window_size", 24)
    output, told = tmp_path / "out", f"`probing` needs --variants ahn, and --model {tiny.base} is a plain base"
    done = launch("run_eval.py", *flags, "--output", output, "--suites", "probing")
    assert done.returncode == 2 and f"error: --suites probing: nothing to measure: {told}" in done.stderr, done.stderr
    assert done.stderr.count("\n") == 1 and not output.exists()
    done = launch("run_eval.py", *flags, "--output", output, "--suites", "probing", "heldout", "--max_documents", 1)
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stderr.splitlines() if line.startswith(f"not measured: {told}")]
    assert f"{told}, which has no memory." in (output / "report.html").read_text()
    assert list(json.loads((output / "report.json").read_text())) == ["heldout"]


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_full_disk_is_one_line_and_the_evaluation_goes_on_with_room(tiny, alone, tmp_path) -> None:
    """On a file system of its own that is too small, then read-only, then large enough."""
    mount, small = 'mount -t tmpfs -o size=$1 tmpfs "$0"', (alone / "records/rank-0.jsonl").stat().st_size // 2
    try_mount = ["unshare", "--mount", "sh", "-c", mount, str(tmp_path), str(small)]
    tried = subprocess.run(try_mount, capture_output=True, text=True)
    if tried.returncode != 0:
        pytest.skip(f"no file system can be mounted here: {tried.stderr.strip()}")
    script = f"{mount}; shift; " + "; ".join(
        f'mount -o remount,{options} "$0"; "$@"; echo "rc $? $(cat "$0"/eval/records/rank-0.jsonl | wc -l)"'
        for options in (f"size={small}", "size=32m,ro", "size=32m,rw")
    )
    command = [sys.executable, SCRIPT, *flags_of(tiny, tmp_path / "eval")]
    inside = ["unshare", "--mount", "sh", "-c", f'{script}; cp -r "$0/eval" {tmp_path}.kept', tmp_path, small]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    arguments = [str(part) for part in [*inside, *command]]
    done = subprocess.run(arguments, capture_output=True, text=True, env=environment, timeout=220)
    results = [line.split()[1:] for line in done.stdout.splitlines() if line.startswith("rc ")]
    total = len(lines_of(alone))
    assert [code for code, _ in results] == ["2", "2", "0"], done.stderr
    assert 0 < int(results[0][1]) == int(results[1][1]) < int(results[2][1]) == total
    errors = [line for line in done.stderr.replace("\r", "\n").splitlines() if line.startswith("error: ")]
    assert "Traceback" not in done.stderr
    told = ("No space left on device; what is measured", "Read-only file system; name a folder")
    for error, reason in zip(errors, told, strict=True):
        assert error.startswith(f"error: --output {tmp_path / 'eval'} cannot be written: {reason}")
    assert Path(f"{tmp_path}.kept/report.json").read_bytes() == (alone / "report.json").read_bytes()


def test_data_of_another_tokenizer_is_refused(tiny, refused, tmp_path) -> None:
    other = tmp_path / "base"
    shutil.copytree(tiny.base, other)
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    tokenizer["model"]["merges"].pop()
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    flags = ("--model", tiny.adapter, "--base", other, "--data", tiny.held_out, "--output", tmp_path / "out")
    assert "was tokenised with" in refused("run_eval.py", *flags)
