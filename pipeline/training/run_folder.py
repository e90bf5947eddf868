"""The run folder: what lies where, whose run it is, and where a resume starts. No torch.

.owner.json     the process that writes here now (pipeline/folder_claim.py)
run.json        settings and fingerprints that make it this run; command, commit and versions of each start; written
                once its base is loaded
config.yaml     the resolved configuration of the last start
metrics.jsonl   one line a step
checkpoints/    step-0000100/{state.json, tensors.safetensors}, `latest` (a name, written last)
adapter/        the newest weights, ready for generation
scorers.json    how the scorers of retained tokens were fitted
report.html     curves, written at the end
stacks/         where each rank was when the run hung
profile/        traces of the steps that --profile names
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pipeline.config import ConfigError, MemoryConfig, TrainConfig, TrainRunConfig, WindowConfig, require, to_plain
from pipeline.provenance import list_starts

# Settings that a resume may change: they alter neither the data, nor the schedule, nor the objective. `topk_tail` says
# how a topk teacher cache is read, and the cache itself may change.
FREE_SETTINGS = frozenset(
    {
        "train.topk_tail",
        "train.micro_batch_size",
        "train.loader_workers",
        "train.loss_chunk_size",
        "train.activation_checkpointing",
        "train.save_every",
        "train.keep_checkpoints",
        "train.async_save",
        "train.step_timeout_s",
        "train.peak_tflops",
        "train.wandb",
        "window.inference_sinks",
        "window.inference_window",
        "window.inference_retained",
    }
)


@dataclass(frozen=True)
class TrainState:
    """Where a run stands after `step` steps (skipped ones included)."""

    step: int = 0
    consumed_samples: int = 0
    skipped_steps: int = 0


@dataclass(frozen=True)
class RunFolder:
    """Paths of one run."""

    root: Path

    @property
    def identity(self) -> Path:
        return self.root / "run.json"

    @property
    def metrics(self) -> Path:
        return self.root / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        return self.root / "checkpoints"

    def checkpoint(self, step: int) -> Path:
        """Of the state after that step."""
        return self.checkpoints / f"step-{step:07d}"

    @property
    def adapter(self) -> Path:
        return self.root / "adapter"

    @property
    def stacks(self) -> Path:
        return self.root / "stacks"


def fixed_settings(config: TrainRunConfig) -> dict[str, Any]:
    """The settings that a resume must not change, flat: {"train.seed": 0, ...}."""
    return _flatten(config.memory, config.window, config.train)


def _flatten(memory: MemoryConfig, window: WindowConfig, train: TrainConfig) -> dict[str, Any]:
    parts = {"memory": memory, "window": window, "train": train}
    flat = {f"{part}.{name}": value for part, fields in parts.items() for name, value in to_plain(fields).items()}
    return {name: value for name, value in flat.items() if name not in FREE_SETTINGS}


def check_run_folder(config: TrainRunConfig, data_fingerprint: str) -> None:
    """Refuses an output folder that holds anything but an earlier start of this very run.

    Raises:
        UserError: names the folder and the first setting that differs.
    """
    folder = RunFolder(config.output)
    require(not config.output.is_file(), f"--output {config.output} is a file; name a folder")
    if not config.output.exists() or not any(not p.name.startswith(".") for p in config.output.iterdir()):
        return
    require(
        folder.identity.is_file(),
        f"--output {config.output} is not empty and holds no run; name another folder",
    )
    require(
        config.resume == "auto",
        f"--output {config.output} holds a run; name another folder or go on from it with --resume auto",
    )
    identity = _read_identity(folder)
    # A setting that is younger than the run had what is now its default.
    settings = _flatten(MemoryConfig(), WindowConfig(), TrainConfig()) | identity["settings"]
    current = fixed_settings(config)
    for name in sorted((current.keys() | settings.keys()) - FREE_SETTINGS):
        before, now = settings.get(name), current.get(name)
        require(
            before == now,
            f"--{name} {now} differs from {before}, with which the run in --output {config.output} was started; "
            f"set it back or name another folder",
        )
    require(
        identity["data_fingerprint"] == data_fingerprint,
        f"--data {config.data} (fingerprint {data_fingerprint[:12]}) is not the data of the run in --output "
        f"{config.output} ({identity['data_fingerprint'][:12]}); name another folder",
    )


def _read_identity(folder: RunFolder) -> dict[str, Any]:
    """What `describe_run` wrote."""
    try:
        identity = json.loads(folder.identity.read_text())
        is_training = {"settings", "data_fingerprint", "base_fingerprint"} <= identity.keys()
    except (ValueError, AttributeError):
        is_training = False
    if is_training:
        return identity
    raise ConfigError(f"--output {folder.root} holds no training, or its run.json is damaged; name another folder")


def check_base_fingerprint(config: TrainRunConfig, base_fingerprint: str) -> None:
    """Refuses to go on with other base weights than the run was started with.

    Raises:
        UserError: names the model and the run.
    """
    folder = RunFolder(config.output)
    if not folder.identity.is_file():
        return
    before = _read_identity(folder)["base_fingerprint"]
    require(
        before == base_fingerprint,
        f"--model {config.model} (fingerprint {base_fingerprint[:12]}) is not the base of the run in --output "
        f"{config.output} ({before[:12]}); name another folder",
    )


def describe_run(config: TrainRunConfig, data_fingerprint: str, base_fingerprint: str) -> None:
    """Marks --output as this run's and writes the resolved configuration; on one rank only.

    Raises:
        OSError: it cannot be written.
    """
    folder = RunFolder(config.output)
    folder.checkpoints.mkdir(parents=True, exist_ok=True)
    identity = {
        "settings": fixed_settings(config),
        "data_fingerprint": data_fingerprint,
        "base_fingerprint": base_fingerprint,
        "starts": list_starts(folder.identity),
    }
    write_atomically(folder.identity, json.dumps(identity, indent=1, sort_keys=True).encode())
    write_atomically(config.output / "config.yaml", yaml.safe_dump(to_plain(config), sort_keys=False).encode())


def write_atomically(path: Path, content: bytes) -> None:
    """Replaces `path` as a whole: after a crash it holds the old or the new content, never a part."""
    temporary = path.with_name(f".tmp-{path.name}")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Makes renames inside `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
