"""Talks to Slurm: submits a chain, tests it, and watches it to its end."""

import re
import shutil
import subprocess
import time
from collections import defaultdict
from collections.abc import Callable, Sequence

from pipeline.errors import UserError
from pipeline.launching.findings import Findings
from pipeline.launching.jobs import Job, inherited_environment

UNFINISHED = frozenset(
    ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "SUSPENDED", "REQUEUED", "REQUEUE_HOLD", "SIGNALING",
     "STAGE_OUT", "STOPPED", "RESIZING", "SPECIAL_EXIT")
)  # fmt: skip
FORGOTTEN = "FORGOTTEN"
"""State of a job that ended unseen: Slurm keeps those that have ended for a time (MinJobAge, by default 5 minutes)."""
States = dict[str, str]
"""State by task of an array, "" for a job that is none."""


def check_jobs(jobs: Sequence[Job], findings: Findings) -> None:
    """Asks sbatch whether it would take each of the jobs, on its own; submits nothing."""
    if shutil.which("sbatch") is None:
        return
    refused = defaultdict[str, list[str]](list)
    for job in jobs:
        command = ["sbatch", "--test-only", *job.options, str(job.script), *job.arguments]
        done = subprocess.run(command, capture_output=True, text=True, env=_environment(job))
        if done.returncode != 0:
            refused[_last_line(done.stderr)].append(job.name)
    for reason, names in refused.items():
        with findings.of("site"):
            raise UserError(f"sbatch would not take {', '.join(names)}: {reason}")


def submit(jobs: Sequence[Job]) -> dict[str, str]:
    """Submits all jobs, or none: those before one that sbatch refuses are cancelled.

    Returns:
        Their numbers, by name.

    Raises:
        UserError: sbatch refused one.
    """
    numbers: dict[str, str] = {}
    for job in jobs:
        done = subprocess.run(job.command(numbers), capture_output=True, text=True, env=_environment(job))
        if done.returncode != 0:
            if numbers:
                subprocess.run(["scancel", *numbers.values()], check=True)
            raise UserError(f"sbatch refused the job {job.name}, so nothing runs: {_last_line(done.stderr)}")
        numbers[job.name] = done.stdout.strip().partition(";")[0]  # a cluster's name may follow
    return numbers


def follow(numbers: dict[str, str], poll_seconds: float, show: Callable[[str], None]) -> bool:
    """Waits until all jobs have ended, and shows what becomes of them; returns whether all completed."""
    states: dict[str, States] = {name: {"": "PENDING"} for name in numbers}
    while True:
        for name, number in numbers.items():
            found = _look(number, states[name])
            if found != states[name]:
                states[name] = found
                show(f"{time.strftime('%Y-%m-%dT%H:%M:%S')} {name} ({number}): {_summary(found)}")
        if not any(state in UNFINISHED for tasks in states.values() for state in tasks.values()):
            return all(is_good(name, tasks, states) for name, tasks in states.items())
        time.sleep(poll_seconds)


def is_good(name: str, tasks: States, states: dict[str, States]) -> bool:
    """Whether a job did what it was for; the cache's array did if the job that finishes it completed."""
    chosen = states["finish_cache"] if name == "cache" else tasks
    return all(state == "COMPLETED" for state in chosen.values())


def _look(number: str, before: States) -> States:
    """The job's states as Slurm has them now; those of `before` when it does not answer."""
    command = ["scontrol", "--oneliner", "show", "job", number]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        has_ended_unseen = "Invalid job id" in done.stderr and any(state in UNFINISHED for state in before.values())
        return {"": FORGOTTEN} if has_ended_unseen else before
    found: States = {}
    for line in done.stdout.splitlines():
        fields = dict(re.findall(r"(\w+)=(\S*)", line))
        found[fields.get("ArrayTaskId", "")] = fields["JobState"]
    return found or before


def _summary(tasks: States) -> str:
    if len(tasks) == 1:
        return next(iter(tasks.values()))
    counts = {state: list(tasks.values()).count(state) for state in sorted(set(tasks.values()))}
    return ", ".join(f"{count} {state}" for state, count in counts.items())


def _environment(job: Job) -> dict[str, str]:
    return dict(inherited_environment()) | job.environment


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["no reason given"])[-1]
