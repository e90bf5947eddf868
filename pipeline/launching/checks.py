"""Looks for what would end a stage hours later: settings against each other, the files they name, the job's size.

Where an earlier stage is going to write what a later one reads, its settings stand for it. Every stage checks again
when it starts. No torch.
"""

import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline.config import PrepareConfig, SubmitConfig, require
from pipeline.data.dataset import PackedDataset
from pipeline.data.storage import is_url
from pipeline.launching.findings import Findings
from pipeline.launching.stages import Stage
from pipeline.model.files import HUB_ID
from pipeline.tokenizer import fingerprint_of


@dataclass(frozen=True)
class DataFacts:
    """What is known of packed data. `dataset` is None where a stage is going to write it; `tokenizer_sha256` then is
    that stage's, None where its tokenizer could not be read."""

    seq_len: int
    tokenizer_sha256: str | None
    dataset: PackedDataset | None = None


@dataclass(frozen=True)
class Experiment:
    """The stages that will run, and what is to be known about them together."""

    config: SubmitConfig
    stages: Mapping[str, Stage]
    planned: dict[Path, DataFacts]
    findings: Findings

    def find_data(self, folder: str, cache: Path | None, cache_bytes: int) -> DataFacts:
        """The packed data of that name, there or to come.

        Raises:
            DataError: it is neither.
        """
        path = Path(folder.removeprefix("file://")).absolute()
        if path in self.planned:
            return self.planned[path]
        dataset = PackedDataset(folder if is_url(folder) else path, cache, cache_bytes)
        require(len(dataset) > 0, f"--data {folder} holds no samples")
        return DataFacts(dataset.manifest.seq_len, dataset.manifest.tokenizer_sha256, dataset)


def check_preparation(
    experiment: Experiment,
    check_documents: Callable[[PrepareConfig], None],
    read_tokenizer: Callable[[PrepareConfig], str],
) -> None:
    """Documents and tokenizer; notes what the data will be.

    Args:
        check_documents: raises UserError where a preparation would find none.
        read_tokenizer: its tokenizer's sha256; raises UserError.
    """
    stage = experiment.stages.get("prepare")
    if stage is None:
        return
    config: PrepareConfig = stage.config
    with experiment.findings.of("prepare"):
        require(
            config.num_workers == 1 and not config.mpi,
            "--num_workers and --mpi are the job's to choose; say under prepare in the site how many tasks_per_node "
            "(MPI) or cpus_per_task there are",
        )
    if experiment.config.site.of_stage("prepare").gpus_per_node:
        experiment.findings.warn("prepare", "asks for GPUs, which it does not use; site: prepare: {gpus_per_node: 0}")
    with experiment.findings.of("prepare"):
        check_documents(config)
    sha256 = None
    with experiment.findings.of("prepare"):
        sha256 = read_tokenizer(config)
    experiment.planned[config.output.absolute()] = DataFacts(config.seq_len, sha256)


def check_outputs(experiment: Experiment) -> None:
    """Whether each stage's folder can be made or written to, by whoever submits."""
    for stage in experiment.stages.values():
        output: Path = stage.config.output
        with experiment.findings.of(stage.name):
            nearest = next(path for path in (output, *output.absolute().parents) if path.exists())
            require(nearest.is_dir(), f"--output {output}: {nearest} is a file; name a folder")
            require(os.access(nearest, os.W_OK | os.X_OK), f"--output {output}: {nearest} cannot be written to")


def check_cluster(experiment: Experiment) -> None:
    """Slurm's programs, and what Python the jobs run."""
    site = experiment.config.site
    with experiment.findings.of("site"):
        missing = [name for name in ("sbatch", "scontrol", "scancel") if shutil.which(name) is None]
        require(not missing, f"{', '.join(missing)} not found; submit where Slurm's commands are on the PATH")
    with experiment.findings.of("site"):
        is_inside = bool(site.container) or site.python is None
        require(
            is_inside or shutil.which(site.python) is not None,
            f"python: {site.python} is no program on this machine; give one that all nodes see",
        )


def check_tokenizer(data: DataFacts, data_name: str, model: str) -> None:
    """Refuses data of another tokenizer than the model's.

    Raises:
        UserError: names both, or the model has no tokenizer.
    """
    found, expected = fingerprint_of(model), data.tokenizer_sha256
    require(
        expected in (None, found),
        f"--data {data_name} is of the tokenizer {(expected or '')[:12]}, --model {model} has {found[:12]}; prepare "
        f"the data with --tokenizer {model}",
    )


def check_weights(model: str, environment: Mapping[str, str]) -> None:
    """Refuses a hub id whose weights are not on this machine, since jobs run without the hub.

    Raises:
        UserError: names the model and the command that fetches it.
    """
    if Path(model).exists() or not HUB_ID.fullmatch(model) or environment.get("HF_HUB_OFFLINE") == "0":
        return
    from huggingface_hub import try_to_load_from_cache  # only for hub ids

    names = ("model.safetensors", "model.safetensors.index.json")
    require(
        any(isinstance(try_to_load_from_cache(model, name), str) for name in names),
        f"--model {model}: its weights are not in this machine's hub cache, and jobs run with HF_HUB_OFFLINE=1; fetch "
        f"them with `hf download {model}`",
    )
