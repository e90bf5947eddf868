"""The layout of the published checkpoints (ByteDance-Seed/AHN-{Mamba2,DN,GDN}-for-Qwen-2.5-Instruct-{3B,7B,14B}).

A folder with `config.json` (the base's) and one `model.safetensors` that holds the memories alone. Its keys are ours,
`model.layers.{i}.ahn.fn.{parameter}`, with one more parameter in GatedDeltaNet that nothing uses: `D` [H], all ones.
Nothing in the folder names the cell; its parameters do.
"""

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipeline.errors import UserError
from pipeline.model.files import ADAPTER_WEIGHTS, fetch_model, holds_memories_alone, is_published_id
from pipeline.whole_output import whole_folder

UNUSED = "D"
CELL_PARAMETERS = {
    "gated_delta_net": {"b_proj.weight", "a_proj.weight", "g_proj.weight", "A_log", "dt_bias", "o_norm.weight",
                        "o_proj.weight"},
    "delta_net": {"b_proj.weight", "g_proj.weight", "o_norm.weight", "o_proj.weight"},
    "mamba2": {"dt_bias", "A_log", "norm.weight", "dt_proj.weight", "dt_proj.bias", "g_proj.weight", "g_proj.bias",
               "o_proj.weight"},
}  # fmt: skip


def find_published(path_or_id: str) -> Path | None:
    """The folder of a published checkpoint: local, or downloaded for a hub id of the AHN collection; else None."""
    folder = fetch_model(path_or_id) if is_published_id(path_or_id) else Path(path_or_id)
    return folder if holds_memories_alone(folder) else None


def read_published(folder: Path) -> tuple[str, dict[str, Tensor]]:
    """The cell's name and its parameters under our names, float32.

    Raises:
        UserError: unreadable, or parameters of no cell that is known here.
    """
    try:
        state = load_file(folder / ADAPTER_WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{folder}: {error}") from error
    state = {name: value.float() for name, value in state.items() if not name.endswith(f".ahn.fn.{UNUSED}")}
    parameters = {name.split(".ahn.fn.", 1)[1] for name in state}
    for cell, expected in CELL_PARAMETERS.items():
        if parameters == expected:
            return cell, state
    raise UserError(f"{folder}: parameters {sorted(parameters)} are those of no cell ({', '.join(CELL_PARAMETERS)})")


def save_published(folder: Path, cell: str, state: dict[str, Tensor], base_config: str) -> None:
    """Writes the memories in the published layout, with the base's config.json (its text) beside them.

    Raises:
        OSError, SafetensorError: the folder is already there, or cannot be written.
    """
    tensors = {name: value.detach().cpu().contiguous() for name, value in state.items()}
    if cell == "gated_delta_net":
        tensors |= {
            name.replace("A_log", UNUSED): torch.ones_like(value)
            for name, value in tensors.items()
            if name.endswith(".ahn.fn.A_log")
        }
    with whole_folder(folder) as unfinished:
        save_file(tensors, unfinished / ADAPTER_WEIGHTS, metadata={"format": "pt"})
        (unfinished / "config.json").write_text(base_config)
