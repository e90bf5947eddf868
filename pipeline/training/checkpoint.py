"""Checkpoints that any number of ranks and any ZeRO stage can read: AHN weights and Adam moments by name.

    checkpoints/step-0000100/tensors.safetensors   weight/NAME, exp_avg/NAME, exp_avg_sq/NAME, float32
    checkpoints/step-0000100/state.json            step, consumed samples, sha256 of the tensors' file
    checkpoints/latest                             the newest folder's name, written last

A folder is written under a temporary name, synced and renamed: a kill at any instant leaves `latest` naming a
whole checkpoint. The frozen base is never saved, nor is a random generator: nothing in training draws from a global
one (order, windows and initial weights follow from --train.seed and the position), so there is no state of any.
"""

import hashlib
import json
import shutil
from dataclasses import asdict
from pathlib import Path

from safetensors.torch import load, save
from torch import Tensor

from pipeline.errors import UserError
from pipeline.training.run_folder import RunFolder, TrainState, sync_folder, write_atomically

TENSORS, STATE, LATEST = "tensors.safetensors", "state.json", "latest"


def save_checkpoint(
    folder: RunFolder, state: TrainState, weights: dict[str, Tensor], moments: dict[str, Tensor], keep: int
) -> Path:
    """Writes one checkpoint and drops all but the newest `keep`; on one rank only.

    Folders of later steps are dropped, too: the run went back behind them.

    Raises:
        OSError: the checkpoint could not be written; those before it are as they were.
    """
    final = folder.checkpoint(state.step)
    temporary = folder.checkpoints / f".tmp-{final.name}"
    for leftover in (temporary, final):  # `final`, if it is there, is torn or was never named by `latest`
        if leftover.exists():
            shutil.rmtree(leftover)
    temporary.mkdir()
    try:
        content = save({f"weight/{name}": tensor for name, tensor in weights.items()} | moments)
        write_atomically(temporary / TENSORS, content)
        digest = {"tensors_sha256": hashlib.sha256(content).hexdigest()}
        write_atomically(temporary / STATE, json.dumps(asdict(state) | digest, indent=1).encode())
    except OSError:
        shutil.rmtree(temporary)  # the disk may be full of it
        raise
    temporary.rename(final)
    sync_folder(folder.checkpoints)
    write_atomically(folder.checkpoints / LATEST, final.name.encode())
    kept = [name for name in _names(folder) if name <= final.name][:keep]
    for name in set(_names(folder)).difference(kept):
        shutil.rmtree(folder.checkpoints / name)
    return final


def find_checkpoint(folder: RunFolder) -> tuple[Path | None, list[str]]:
    """Where a resume starts: the checkpoint that `latest` names if it is whole, else the newest that is.

    Returns:
        Its folder, None before the first save; and what is wrong with those that should have come before it.

    Raises:
        UserError: there are checkpoints, and none is whole.
    """
    pointer = folder.checkpoints / LATEST
    named = [pointer.read_text(errors="replace").strip()] if pointer.is_file() else []
    torn = []
    for name in dict.fromkeys(named + _names(folder)):
        damage = find_damage(folder.checkpoints / name)
        if damage is None:
            return folder.checkpoints / name, torn
        torn.append(f"{name or LATEST} {damage}")
    if torn:
        raise UserError(
            f"{folder.checkpoints} has no whole checkpoint: {'; '.join(torn)}; put one back, or remove that folder to "
            f"start from the beginning"
        )
    return None, []


def find_damage(checkpoint: Path) -> str | None:
    """What keeps a checkpoint from being read; None if it is whole."""
    try:
        expected = json.loads((checkpoint / STATE).read_bytes())["tensors_sha256"]
        content = (checkpoint / TENSORS).read_bytes()
    except FileNotFoundError as error:
        return f"is missing {Path(error.filename).name}" if checkpoint.is_dir() else "is missing"
    except (ValueError, KeyError, TypeError):
        return f"has a damaged {STATE}"
    whole = hashlib.sha256(content).hexdigest() == expected
    return None if whole else f"has a damaged {TENSORS} ({len(content):,} bytes)"


def load_state(checkpoint: Path | None) -> TrainState:
    """Where the checkpoint stands; the very beginning for None."""
    if checkpoint is None:
        return TrainState()
    fields = json.loads((checkpoint / STATE).read_text())
    return TrainState(**{name: fields[name] for name in TrainState.__dataclass_fields__})


def load_tensors(checkpoint: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Weights by name, and moments as {"exp_avg/NAME": tensor, ...}.

    Raises:
        UserError: what this process reads is not what was written.
    """
    damage = find_damage(checkpoint)
    if damage is not None:
        raise UserError(f"{checkpoint} {damage}")
    tensors = load((checkpoint / TENSORS).read_bytes())
    weights = {name.removeprefix("weight/"): t for name, t in tensors.items() if name.startswith("weight/")}
    return weights, {name: t for name, t in tensors.items() if not name.startswith("weight/")}


def _names(folder: RunFolder) -> list[str]:
    """Newest first."""
    return sorted((path.name for path in folder.checkpoints.glob("step-*")), reverse=True)
