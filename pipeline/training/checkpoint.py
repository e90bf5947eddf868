"""Checkpoints that any number of ranks and any ZeRO stage can read: AHN weights and Adam moments by name.

    checkpoints/step-0000100/tensors.safetensors   weight/NAME, exp_avg/NAME, exp_avg_sq/NAME, float32
    checkpoints/step-0000100/state.json            step, consumed samples, digest of the tensors
    checkpoints/latest                             the newest folder's name, written last

A folder is written under a temporary name, synced and renamed: a kill at any instant leaves `latest` naming a
whole checkpoint. The frozen base is never saved.
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

TENSORS, STATE = "tensors.safetensors", "state.json"


def save_checkpoint(
    folder: RunFolder, state: TrainState, weights: dict[str, Tensor], moments: dict[str, Tensor], keep: int
) -> Path:
    """Writes one checkpoint and drops all but the newest `keep`; on one rank only."""
    final = folder.checkpoints / f"step-{state.step:07d}"
    temporary = folder.checkpoints / f".tmp-{final.name}"
    for leftover in (temporary, final):  # `final`, if it is there, was never named by `latest`
        if leftover.exists():
            shutil.rmtree(leftover)
    temporary.mkdir()
    content = save({f"weight/{name}": tensor for name, tensor in weights.items()} | moments)
    write_atomically(temporary / TENSORS, content)
    description = asdict(state) | {"tensors_sha256": hashlib.sha256(content).hexdigest()}
    write_atomically(temporary / STATE, json.dumps(description, indent=1).encode())
    temporary.rename(final)
    sync_folder(folder.checkpoints)
    write_atomically(folder.checkpoints / "latest", final.name.encode())
    for old in sorted(folder.checkpoints.glob("step-*"))[:-keep]:
        shutil.rmtree(old)
    return final


def load_state(checkpoint: Path | None) -> TrainState:
    """Where the checkpoint stands; the very beginning for None."""
    if checkpoint is None:
        return TrainState()
    fields = json.loads((checkpoint / STATE).read_text())
    fields.pop("tensors_sha256")
    return TrainState(**fields)


def load_tensors(checkpoint: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Weights by name, and moments as {"exp_avg/NAME": tensor, ...}.

    Raises:
        UserError: the file is not the one that was written.
    """
    path = checkpoint / TENSORS
    content = path.read_bytes() if path.is_file() else b""
    if hashlib.sha256(content).hexdigest() != json.loads((checkpoint / STATE).read_text())["tensors_sha256"]:
        raise UserError(
            f"{path} is damaged; write the name of an older checkpoint into {checkpoint.parent / 'latest'}, "
            f"or start again in another folder"
        )
    tensors = load(content)
    weights = {name.removeprefix("weight/"): t for name, t in tensors.items() if name.startswith("weight/")}
    return weights, {name: t for name, t in tensors.items() if not name.startswith("weight/")}
