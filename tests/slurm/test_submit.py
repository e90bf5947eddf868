"""launchers/submit.py on a real cluster: the whole chain, preemption, a stage that fails, and mistakes found before."""

import json
import subprocess
import time
from pathlib import Path

import pytest

from pipeline.data.dataset import PackedDataset
from pipeline.errors import UserError
from pipeline.launching.jobs import Job
from pipeline.launching.slurm import follow
from pipeline.launching.slurm import submit as submit_jobs
from pipeline.teacher.verify import verify_cache
from tests.slurm.cluster import Cluster
from tests.slurm.experiments import (
    MAX_STEPS,
    command,
    failing_python,
    job_numbers,
    logs,
    make_experiment,
    read_steps,
    submit,
)
from tests.teacher.capture_inputs import make_teacher

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def chain(slurm: Cluster, tiny_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an experiment whose chain has run to its end, though one task of the cache's array dies at once;
    what submit.py printed is in submit.log."""
    root = make_experiment(tmp_path_factory.mktemp("the chain"), tiny_tokenizer)
    python = failing_python(root / "python", "$SLURM_ARRAY_TASK_ID = 1")
    done = submit(slurm, root, "--site.cache.nodes", 1, "--site.python", python, "--follow")
    (root / "submit.log").write_text(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr + logs(root)
    return root


def test_one_command_takes_documents_to_a_report(chain: Path) -> None:
    dataset = PackedDataset(chain / "data")
    verify_cache(chain / "cache", dataset)
    rows = read_steps(chain / "run")
    assert [row["step"] for row in rows] == list(range(1, MAX_STEPS + 1))
    assert all(row["loss/kl"] > 0 and row["optim/grad_norm"] > 0 for row in rows)
    assert all(row["teacher/cached_samples"] == 4 for row in rows)
    report = json.loads((chain / "eval/report.json").read_text())["heldout"]
    assert report["num_documents"] == 3 and report["kl"]["ahn"] != report["kl"]["window"]
    printed = (chain / "submit.log").read_text()
    assert list(job_numbers(printed)) == ["prepare", "cache", "finish_cache", "train", "evaluate"]
    last = {line.split()[1]: line.split(": ")[1] for line in printed.splitlines() if line.startswith("20")}
    assert last.pop("cache") == "1 COMPLETED, 1 FAILED" and set(last.values()) == {"COMPLETED"}
    assert "all well" in logs(chain)


def test_a_preempted_training_is_queued_again_and_ends_with_the_same_adapter(slurm: Cluster, chain: Path) -> None:
    """It also reads the data through a copy on the node's own disk."""
    run = chain / "preempted"
    flags = ["--train.output", run, "--evaluate.output", chain / "eval2", "--site.data_cache", chain / "disk %j"]
    flags += ["--site.evaluate.tasks_per_node", 1]  # two are in the chain
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(command(chain, *flags, "--follow"), env=slurm.environment, cwd=chain, **pipes) as follower:
        first = [follower.stdout.readline() for _ in range(4)]
        assert [line.split(":")[0] for line in first] == ["prepare", "cache", "train", "evaluate"], first
        job = job_numbers("".join(first))["train"]
        while len(read_steps(run)) < 5:
            assert follower.poll() is None, logs(chain)
            time.sleep(0.01)
        slurm.run("scancel", "--batch", "--signal=USR1", job)
        rest = follower.stdout.read()
    assert follower.returncode == 0, rest + logs(chain)
    log = (chain / f"slurm_logs/train-{job}.log").read_text()
    assert "stopped and saved; queued again" in log and "requeued 1 times" in log
    assert read_steps(run) == read_steps(chain / "run")
    weights = Path("adapter") / "model.safetensors"
    assert (run / weights).read_bytes() == (chain / "run" / weights).read_bytes()
    assert (chain / "eval2/report.json").is_file()
    copied = [path for path in (chain / f"disk {job}").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in copied) > 1000


def test_a_stage_that_fails_takes_those_after_it_along(slurm: Cluster, chain: Path) -> None:
    python = failing_python(chain / "no training", "$1 = */train.py")
    flags = ["--train.output", chain / "failed", "--evaluate.output", chain / "eval3", "--site.python", python]
    done = submit(slurm, chain, *flags, "--follow")
    numbers = job_numbers(done.stdout)
    assert done.returncode == 1 and list(numbers) == ["train", "evaluate"], done.stdout + done.stderr
    assert f"train ({numbers['train']}): FAILED" in done.stdout
    assert f"evaluate ({numbers['evaluate']}): CANCELLED" in done.stdout
    assert not (chain / "eval3").exists()


def test_without_data_nothing_else_runs(slurm: Cluster, tiny_tokenizer: Path, tmp_path: Path) -> None:
    """Nor the job that finishes the cache however its array has ended."""
    root = make_experiment(tmp_path, tiny_tokenizer)
    python = failing_python(root / "python", "$1 = */prepare.py")
    done = submit(slurm, root, "--site.python", python, "--follow")
    last = {line.split()[1]: line.split(": ")[1] for line in done.stdout.splitlines() if line.startswith("20")}
    waiting = dict.fromkeys(("cache", "finish_cache", "train", "evaluate"), "CANCELLED")
    assert done.returncode == 1 and last == {"prepare": "FAILED"} | waiting, done.stdout + done.stderr
    assert [path.name.split("-")[0] for path in (root / "slurm_logs").iterdir()] == ["prepare"]


def test_a_job_that_ended_unseen_is_no_success(slurm: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PATH", "SLURM_CONF"):
        monkeypatch.setenv(name, slurm.environment[name])
    shown: list[str] = []
    assert not follow({"train": "987654"}, 0.1, shown.append)
    assert len(shown) == 1 and shown[0].endswith("train (987654): FORGOTTEN")


def test_a_job_that_sbatch_refuses_takes_back_those_before_it(slurm: Cluster, tmp_path: Path, monkeypatch) -> None:
    for name in ("PATH", "SLURM_CONF"):
        monkeypatch.setenv(name, slurm.environment[name])
    script = tmp_path / "script"
    script.write_text("#!/bin/sh\nsleep 60\n")
    jobs = [
        Job("first", ["--job-name=first", "--output=/dev/null"], script, [], {}, {}),
        Job("second", ["--partition=nope"], script, [], {}, {"first": "afterok"}),
    ]
    with pytest.raises(UserError, match=r"sbatch refused the job second, so nothing runs: .* partition"):
        submit_jobs(jobs)
    listed = slurm.run("squeue", "--states=all", "--noheader", "--name=first,second", "--format=%j %T")
    assert listed.split() in (["first", "CANCELLED"], ["first", "COMPLETING"])


def test_a_finished_experiment_submits_nothing(slurm: Cluster, chain: Path) -> None:
    done = submit(slurm, chain, "--follow")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        f"{name}: {chain / folder} is finished, left out"
        for name, folder in {"prepare": "data", "cache": "cache", "train": "run", "evaluate": "eval"}.items()
    ]


def test_a_dry_run_lists_every_mistake_and_submits_nothing(
    slurm: Cluster, tiny_tokenizer: Path, tmp_path: Path
) -> None:
    """Of an experiment whose data is not there yet."""
    root = make_experiment(tmp_path, tiny_tokenizer)
    other = make_teacher(root / "other")
    (root / "file").write_text("")
    mistakes = {
        "--prepare.inputs": root / "nowhere",
        "--cache.min_budget": 30,
        "--cache.output": root / "file/cache",
        "--train.model": other,
        "--train.ds_config": root / "zero9.json",
        "--train.train.global_batch_size": 5,
        "--train.sequence_parallel_size": 3,
        "--train.window.budgets": "[24]",
        "--evaluate.windowsize": 28,
        "--site.train.partition": "nope",
        "--site.train.gpus_per_node": 3,
        "--site.evaluate.nodes": 9,
        "--site.python": root / "python9",
    }
    flags = [part for pair in mistakes.items() for part in pair]
    done = submit(slurm, root, *flags, "--dry_run")
    assert done.returncode == 2, done.stdout + done.stderr
    found = done.stderr.splitlines()
    assert [line for line in found if not line.startswith("error: ")] == []
    expected = [
        ("prepare", "nowhere"),
        ("cache", "--output", "file/cache", "is a file"),
        ("train", "zero9.json", "does not exist"),
        ("train", "--train.global_batch_size 5", "2 data-parallel ranks", "nearest that is: 4"),
        ("train", "--sequence_parallel_size 3", "4 query and 2 key-value heads allow 2, 4"),
        ("train", "--data", "--model", "other", "prepare the data with --tokenizer"),
        ("train", "--window.budgets [24] may draw 24", "cache: --min_budget 30"),
        ("train", f"--model {other} is not the teacher", f"cache: --model {root / 'base'}"),
        ("evaluate", "windowsize"),
        ("site", "python9"),
        ("site", "would not take train: ", "Invalid partition"),
    ]
    for stage, *parts in expected:
        assert [line for line in found if line.startswith(f"error: {stage}: ") and all(p in line for p in parts)], (
            parts,
            done.stderr,
        )
    assert len(found) == len(expected), done.stderr
    assert done.stdout.count("sbatch --parsable") == 4 and "'--dependency=afterok:<finish_cache>'" in done.stdout
    assert slurm.run("squeue", "--noheader") == "" and not (root / "slurm_logs").exists()


def test_what_is_there_already_is_compared_too(slurm: Cluster, chain: Path) -> None:
    """Data, cache and run of the chain that has run; a new cache would not fit on a disk of 64 KiB."""
    (chain / "small disk").mkdir()
    common = ["--evaluate.num_sink_tokens", 60, "--evaluate.window_size", 60]
    on_disk = ["--cache.output", chain / "small disk/cache", "--cache.compression", "none", "--cache.min_budget", 0]
    on_gpus = ["--site.train.gpus_per_node", 2, "--gpu_memory", 1.5, "--site.train.tasks_per_node", "null"]
    changed = ["--train.train.seed", 7, "--train.train.max_steps", 50, "--site.data_cache", "/scratch/%j"]
    mount = 'mount -t tmpfs -o size=64k tmpfs "$1" && shift && exec "$@"'
    inside = ["unshare", "--mount", "sh", "-c", mount, "sh", str(chain / "small disk")]
    arguments = [*inside, *command(chain, *common, *on_disk, *on_gpus, *changed, "--dry_run")]
    done = subprocess.run(arguments, capture_output=True, text=True, cwd=chain, env=slurm.environment, timeout=100)
    assert done.returncode == 2, done.stdout + done.stderr
    expected = [
        ("cache", "small disk", "are free where", "choose another --signal"),
        ("train", "--gpu_memory 1.5", "each GPU would need about 2.0 GiB"),
        ("train", "--train.max_steps 50 differs from 40"),
        ("evaluate", "--data", "sequence length 96", "122 tokens", "sinks + window = 120"),
    ]
    found = done.stderr.splitlines()
    for stage, *parts in expected:
        assert [line for line in found if line.startswith(f"error: {stage}: ") and all(p in line for p in parts)], (
            parts,
            done.stderr,
        )
    assert len(found) == len(expected), done.stderr
    assert f"--data=file://{chain / 'data'}" in done.stdout and " AHN_DATA_CACHE=/scratch/%j " in done.stdout
    assert done.stdout.startswith(f"prepare: {chain / 'data'} is finished, left out")
