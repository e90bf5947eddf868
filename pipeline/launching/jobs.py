"""The chain of Slurm jobs of an experiment: sbatch's command line and environment for each. Nothing passes a shell."""

import os
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pipeline.config import Resources, SubmitConfig, TeacherCacheConfig
from pipeline.launching.stages import Stage

SCRIPTS = Path("launchers") / "slurm"
FINISH = "finish_cache"
Condition = Literal["afterok", "afterany"]
_OPTIONS = ("account", "partition", "qos", "nodes", "gpus_per_node")


@dataclass(frozen=True)
class Job:
    """One job (or array) of the chain. `after`: the earlier jobs of the chain that it waits for, and what of them."""

    name: str
    options: list[str]
    script: Path
    arguments: list[str]
    environment: dict[str, str]
    after: dict[str, Condition]

    def command(self, number_of: dict[str, str]) -> list[str]:
        """sbatch's command line.

        Args:
            number_of: numbers of the jobs that were submitted before, by name.
        """
        conditions = [f"{how}:{number_of[name]}" for name, how in self.after.items()]
        depends = [f"--dependency={','.join(conditions)}", "--kill-on-invalid-dep=yes"] if conditions else []
        return ["sbatch", "--parsable", "--export=ALL", *self.options, *depends, str(self.script), *self.arguments]

    def describe(self) -> str:
        """The command as a shell would take it, with names of jobs in the place of their numbers."""
        command = self.command({name: f"<{name}>" for name in self.after})
        return shlex.join(["env", *(f"{k}={v}" for k, v in self.environment.items()), *command])


def build_jobs(config: SubmitConfig, stages: dict[str, Stage], root: Path) -> list[Job]:
    """The jobs of these stages, each after the one before.

    A task of the cache's array that dies leaves its shards to the others, or to the job that finishes the cache: so
    that one runs however the array has ended, and what needs the cache waits for it.

    Args:
        root: the repository.
    """
    jobs: list[Job] = []
    for name, stage in stages.items():
        site = config.site.of_stage(name)
        after: dict[str, Condition] = {jobs[-1].name: "afterok"} if jobs else {}
        options, environment = _options(name, site), _environment(config, root)
        script = root / SCRIPTS / ("cache_teacher.sbatch" if name == "cache" else f"{name}.sbatch")
        if name == "cache":
            options += [f"--array=0-{config.cache_jobs - 1}"]
        jobs.append(Job(name, options, script, stage.arguments, environment, after))
        if name == "cache":
            jobs.append(_finishing_job(config, stage, root, after | {"cache": "afterany"}))
    return jobs


def _finishing_job(config: SubmitConfig, stage: Stage, root: Path, after: dict[str, Condition]) -> Job:
    cache: TeacherCacheConfig = stage.config
    options, environment = _options(FINISH, config.site.of_stage("cache")), _environment(config, root)
    if config.verify_samples is not None:
        environment["AHN_VERIFY_SAMPLES"] = str(config.verify_samples)
    arguments = [str(cache.output), cache.data, *stage.arguments]
    return Job(FINISH, options, root / SCRIPTS / f"{FINISH}.sbatch", arguments, environment, after)


def _options(name: str, site: Resources) -> list[str]:
    given = {option: getattr(site, option) for option in _OPTIONS}
    if site.hours is not None:
        given["time"] = max(1, round(site.hours * 60))
    if site.gpus_per_node:
        given["cpus_per_gpu"] = site.cpus_per_task
    else:
        given |= {"gpus_per_node": None, "ntasks_per_node": site.tasks_per_node, "cpus_per_task": site.cpus_per_task}
    flags = [f"--{option.replace('_', '-')}={value}" for option, value in given.items() if value is not None]
    return [f"--job-name={name}", *flags, *site.sbatch]


def _environment(config: SubmitConfig, root: Path) -> dict[str, str]:
    """What launchers/slurm/stage.sh reads, and the site's own variables."""
    site = config.site
    python = site.python or ("python" if site.container else sys.executable)
    found = {"AHN_ROOT": str(root), "AHN_PYTHON": python}
    if site.modules:
        found["AHN_MODULES"] = " ".join(site.modules)
    if site.container:
        found["AHN_CONTAINER"] = "\n".join(site.container)
    if site.data_cache is not None:
        found["AHN_DATA_CACHE"] = site.data_cache
    return site.environment | found


def inherited_environment() -> Iterator[tuple[str, str]]:
    """The submitter's variables without those of a job that it may run in, which sbatch would hand on."""
    for name, value in os.environ.items():
        if not name.startswith("SLURM_") or name == "SLURM_CONF":
            yield name, value
