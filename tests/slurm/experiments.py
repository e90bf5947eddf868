"""A tiny experiment for launchers/submit.py, and a way to run it as a user does."""

import json
import subprocess
import sys
from pathlib import Path

import yaml

from tests.conftest import TINY_VOCAB_SIZE
from tests.launchers.conftest import REPOSITORY
from tests.slurm.cluster import Cluster
from tests.tiny_models import make_base

SUBMIT = [sys.executable, str(REPOSITORY / "launchers" / "submit.py")]
MAX_STEPS = 40


def make_experiment(root: Path, tokenizer: Path) -> Path:
    """A base, documents, and experiment.yaml with site.yaml beside it: two nodes of one process for training."""
    base = make_base(root / "base", tokenizer, TINY_VOCAB_SIZE)
    documents = root / "my documents"
    documents.mkdir()
    for source in sorted((REPOSITORY / "pipeline" / "data").glob("*.py"))[1:7]:
        (documents / f"{source.stem}.txt").write_text(source.read_text()[:2500])
    site = {
        "hours": 0.2,
        "environment": {"OMP_NUM_THREADS": "1"},
        "prepare": {"nodes": 2, "tasks_per_node": 1},
        "train": {"nodes": 2, "tasks_per_node": 1},
        "evaluate": {"tasks_per_node": 2},
    }
    (root / "site.yaml").write_text(yaml.safe_dump(site))
    train = {
        "max_steps": MAX_STEPS,
        "global_batch_size": 4,
        "learning_rate": 0.01,
        "base_dtype": "float32",
        "loss_chunk_size": 32,
        "save_every": 15,
    }
    experiment = {
        "site": "site.yaml",
        "prepare": {
            "inputs": str(documents),
            "tokenizer": str(base),
            "output": str(root / "data"),
            "seq_len": 96,
        },
        "cache": {"signal": "hidden", "min_budget": 24, "base_dtype": "float32", "output": str(root / "cache")},
        "train": {
            "ds_config": str(REPOSITORY / "ds_configs" / "zero2.json"),
            "output": str(root / "run"),
            "window": {"budgets": [24, 32], "sinks": [2, 4], "inference_sinks": 4, "inference_window": 28},
            "train": train,
        },
        "evaluate": {
            "suites": ["heldout"],
            "data": str(root / "data"),
            "output": str(root / "eval"),
            "max_documents": 3,
        },
        "cache_jobs": 2,
        "poll_seconds": 0.2,
    }
    (root / "experiment.yaml").write_text(yaml.safe_dump(experiment))
    return root


def failing_python(path: Path, condition: str) -> Path:
    """A Python that fails at once, with exit code 9, in the processes for which a shell's test of `[[ ]]` holds."""
    path.write_text(f'#!/bin/bash\n[[ {condition} ]] && exit 9\nexec {sys.executable} "$@"\n')
    path.chmod(0o755)
    return path


def command(root: Path, *flags: object) -> list[str]:
    """submit.py for the experiment in `root`."""
    return [*SUBMIT, "--config", str(root / "experiment.yaml"), *map(str, flags)]


def submit(slurm: Cluster, root: Path, *flags: object, **env: str) -> subprocess.CompletedProcess[str]:
    """Runs submit.py to its end, in the experiment's folder."""
    arguments = command(root, *flags)
    return subprocess.run(arguments, capture_output=True, text=True, timeout=250, cwd=root, env=slurm.environment | env)


def job_numbers(output: str) -> dict[str, str]:
    """Numbers of the jobs by name, as submit.py prints them."""
    return dict(line.split(": job ") for line in output.splitlines() if ": job " in line)


def logs(root: Path) -> str:
    """The ends of all jobs' logs."""
    files = sorted((root / "slurm_logs").glob("*.log"))
    return "\n".join(f"--- {file.name}\n{file.read_text()[-3000:]}" for file in files)


def read_steps(run: Path) -> list[dict]:
    """The rows of metrics.jsonl without what depends on the machine."""
    path = run / "metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    return [{k: v for k, v in row.items() if not k.startswith(("perf/", "mem/", "comm/"))} for row in rows]
