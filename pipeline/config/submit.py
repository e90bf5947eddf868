"""Settings of launchers/submit.py."""

from dataclasses import dataclass, field
from typing import Any

from pipeline.config.parsing import require


@dataclass
class Resources:
    """What sbatch is asked for. What is left out is the script's or the cluster's to decide."""

    account: str | None = None
    """Whom the time is charged to."""
    partition: str | None = None
    """Partition, or several with commas."""
    qos: str | None = None
    """Quality of service."""
    hours: float | None = None
    """Time limit of a job. Default: that of its script in launchers/slurm."""
    nodes: int | None = None
    """Nodes of a job."""
    gpus_per_node: int | None = None
    """GPUs of each node, with one process each. Default and 0: none."""
    tasks_per_node: int | None = None
    """Processes of each node where there are no GPUs."""
    cpus_per_task: int | None = None
    """CPU cores of each process."""
    sbatch: list[str] = field(default_factory=list)
    """More of sbatch's options, as --constraint=a100; a stage's come after those for all."""

    def __post_init__(self) -> None:
        for name, least in (("nodes", 1), ("gpus_per_node", 0), ("tasks_per_node", 1), ("cpus_per_task", 1)):
            value = getattr(self, name)
            require(value is None or value >= least, f"site: {name} must be >= {least}, found {value}")
        require(self.hours is None or self.hours > 0, f"site: hours must be > 0, found {self.hours}")
        for option in self.sbatch:
            require(option.startswith("-"), f"site: sbatch takes options that begin with a dash, found {option!r}")

    @property
    def num_processes(self) -> int:
        """Processes that launchers/slurm/*.sbatch starts in a job."""
        return (self.nodes or 1) * (self.gpus_per_node or self.tasks_per_node or 1)


@dataclass
class SiteConfig(Resources):
    """The cluster: what holds for all jobs, and under a stage's name what is otherwise for that stage."""

    modules: list[str] = field(default_factory=list)
    """For `module load`, in this order."""
    container: list[str] = field(default_factory=list)
    """What Python runs in, an argument each: [apptainer, exec, --nv, image.sif]."""
    python: str | None = None
    """Python on the nodes. Default: the one that runs submit.py; in a container `python`."""
    environment: dict[str, str] = field(default_factory=dict)
    """Variables of the jobs, as {NCCL_SOCKET_IFNAME: ib0}."""
    data_cache: str | None = None
    """Folder on the nodes' own disks: training reads each shard of the data once over the network and keeps it there.
    %j becomes the job's number."""
    prepare: Resources = field(default_factory=Resources)
    cache: Resources = field(default_factory=Resources)
    """Also for the job that finishes the cache."""
    train: Resources = field(default_factory=Resources)
    evaluate: Resources = field(default_factory=Resources)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self.modules:
            require(bool(name) and not any(map(str.isspace, name)), f"site: modules: {name!r} is no module's name")
        for argument in self.container:
            require("\n" not in argument, f"site: container: {argument!r} has a line break")

    def of_stage(self, stage: str) -> Resources:
        """What the stage's jobs ask for."""
        own: Resources = getattr(self, stage)
        values = {name: getattr(own, name) for name in Resources.__dataclass_fields__}
        chosen = {name: getattr(self, name) if value is None else value for name, value in values.items()}
        return Resources(**chosen | {"sbatch": self.sbatch + own.sbatch})


@dataclass
class SubmitConfig:
    """Submit data preparation, teacher cache, training and evaluation to Slurm as one chain of jobs.

    A stage is submitted that the experiment names and whose result is not there yet. It takes the settings of its
    launcher (prepare.py, cache_teacher.py, train.py, run_eval.py) under their names there; on the command line as
    --train.output RUN, --train.train.max_steps 100. What one stage writes the next ones read unless told otherwise.
    """

    site: SiteConfig = field(default_factory=SiteConfig)
    """The cluster, usually a YAML file of its own: launchers/recipes/experiments/site.example.yaml."""
    prepare: dict[str, Any] | None = None
    """Settings of launchers/prepare.py; `config: FILE` for a YAML file with some of them, here and below."""
    cache: dict[str, Any] | None = None
    """Settings of launchers/cache_teacher.py. Left out: the teacher runs in every step, or --train.teacher_cache."""
    train: dict[str, Any] | None = None
    """Settings of launchers/train.py."""
    evaluate: dict[str, Any] | None = None
    """Settings of launchers/run_eval.py; --data, the held-out documents, must be there already."""
    cache_jobs: int = 1
    """Jobs in the array that writes the cache."""
    verify_samples: int | None = None
    """Samples of the finished cache that are read to check it. Default: all."""
    gpu_memory: float | None = None
    """GiB of each GPU. Given: a training whose estimate is above it is refused."""
    dry_run: bool = False
    """Only print what is wrong, and sbatch's command lines."""
    follow: bool = False
    """Print what becomes of the jobs until all have ended; exit code 0 if all completed, else 1."""
    poll_seconds: float = 10.0
    """Time between two looks at the jobs with --follow."""

    def __post_init__(self) -> None:
        for name in ("cache_jobs", "verify_samples"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"--{name}: must be >= 1, found {value}")
        for name in ("gpu_memory", "poll_seconds"):
            value = getattr(self, name)
            require(value is None or value > 0, f"--{name}: must be > 0, found {value}")
