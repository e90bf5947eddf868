"""Every benchmark fetched by one command as a user gives it, and then run where there is no network at all."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.distributed.processes import REPOSITORY as ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
FETCHED = ("lveval", "infinitebench", "longbench", "longbench2", "ruler", "babilong")
TASKS = {
    "longbench_hotpotqa": "score,none",
    "paper_longbench_triviaqa": "score,none",
    "longbench2_detective": "acc,none",
    "babilong_qa1": "acc,none",
    "infinitebench_passkey": "score,none",
    "infinitebench_longbook_qa_en": "score,none",
    "lveval_cmrc_mixup_16k": "score,none",
}
RULER = ("niah_single_2", "ruler_qa_squad", "ruler_qa_hotpot")
SETTINGS = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def run_apart(*command: object, home: Path) -> subprocess.CompletedProcess[str]:
    """Runs a command in network and mount namespaces of its own, without what this machine has cached."""
    inherited = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    return subprocess.run(
        [str(word) for word in ("unshare", "--net", "--mount", *command)],
        env=inherited | SETTINGS | {"HF_HOME": str(home), "HOME": str(home)},
        capture_output=True,
        text=True,
        timeout=240,
        cwd=home,
    )


@pytest.fixture(scope="module")
def data_root(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("fetched")
    probe = run_apart("openssl", "version", home=folder)
    if probe.returncode != 0:
        pytest.skip(f"a stand-in for the internet needs namespaces and openssl: {probe.stderr.strip()}")
    internet = (sys.executable, ROOT / "tests/evaluation/stand_in_internet.py", folder, sys.executable)
    fetch = (ROOT / "launchers/run_eval.py", "--fetch", *FETCHED, "--data_root", folder / "data")
    done = run_apart(*internet, *fetch, home=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    assert [line.split(":")[0] for line in done.stdout.splitlines()] == list(FETCHED)
    before = (folder / "asked.txt").read_text()
    again = run_apart(*internet, *fetch, home=folder)
    assert again.stdout == done.stdout, again.stderr[-3000:]
    asked = (folder / "asked.txt").read_text().removeprefix(before).splitlines()
    contents = (".zip", ".jsonl", ".parquet", ".json")
    assert not [line for line in asked if line.startswith("GET") and line.endswith(contents)], "fetched twice"
    return folder / "data"


def run_offline(data_root: Path, model: Path, output: Path, *flags: object) -> dict:
    """Results of lm-eval's command line, where there is no network."""
    command = (sys.executable, "-m", "pipeline.evaluation.lm_eval_run", "--data_root", data_root, "--model", "ahn")
    model_args = f"pretrained={model},prefill_chunk=64"
    common = ("--model_args", model_args, "--limit", 1, "--output_path", output, "--gen_kwargs", "max_gen_toks=8")
    done = run_apart(*command, *common, *flags, home=data_root.parent)
    assert done.returncode == 0, done.stderr[-3000:]
    (report,) = output.rglob("results_*.json")
    return json.loads(report.read_text()) | {"printed": done.stdout}


def test_every_benchmark_runs_without_a_network(data_root, folder, tmp_path):
    found = run_offline(data_root, folder / "adapter", tmp_path, "--tasks", ",".join(TASKS))
    assert found["results"].keys() == TASKS.keys()
    for task, metric in TASKS.items():
        assert 0 <= found["results"][task][metric] <= 1, task
    assert found["config"]["num_requests"] == {**dict.fromkeys(TASKS, 1), "longbench2_detective": 4}
    assert "infinitebench_passkey (lm-eval's variant)" in found["printed"]
    assert found["config"]["evicted"].keys() == TASKS.keys()
    for task, evicted in found["config"]["evicted"].items():
        assert evicted["min"] > 100 and f"{task}: By the end of its prompt, sinks + window have" in found["printed"]


def test_ruler_makes_its_documents_without_a_network(data_root, folder, tmp_path):
    flags = ("--tasks", ",".join(RULER), "--metadata", '{"max_seq_lengths": [768]}')
    found = run_offline(data_root, folder / "adapter", tmp_path, *flags)
    assert found["results"].keys() == set(RULER)
    assert all(0 <= found["results"][task]["768,none"] <= 1 for task in RULER)
    assert found["config"]["num_requests"] == dict.fromkeys(RULER, 1) and not found["config"]["num_truncated"]


def test_the_official_suites_run_without_a_network(data_root, folder, tmp_path):
    suites = ("--suites", "lveval", "infinitebench", "--tasks", "cmrc_mixup_*", "passkey", "longbook_qa_eng")
    where = ("--data_root", data_root, "--model", folder / "adapter", "--output", tmp_path / "eval")
    done = run_apart(
        *(sys.executable, ROOT / "launchers/run_eval.py", *where, *suites, "--variants", "full", "ahn"),
        home=data_root.parent,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads((tmp_path / "eval/report.json").read_text())
    assert report["lveval"]["tasks"].keys() == {f"cmrc_mixup_{n}k" for n in (16, 32, 64, 128, 256)}
    assert report["infinitebench"]["tasks"].keys() == {"passkey", "longbook_qa_eng"}
    for task in (*report["lveval"]["tasks"].values(), *report["infinitebench"]["tasks"].values()):
        assert (task["examples"], set(task["scores"])) == (1, {"full", "ahn"})
    assert report["lveval"]["tasks"]["cmrc_mixup_16k"]["truncated"] == 0
    for suite, title in (("lveval", "LV-Eval"), ("infinitebench", "InfiniteBench")):  # the base has 1,024 positions
        evicted = report[suite]["evicted"]
        told = f"By the end of its prompt, sinks \\+ window have evicted {evicted['min']:,} to"
        assert re.search(f"^{title}\n{told}", done.stdout, re.MULTILINE)
        assert evicted["share"] == 1 and "full" in report[suite]["beyond_positions"]
    assert done.stdout.count("longer than the 1,024 positions that it can use") == 2
