"""The adapter folder: the AHN parameters and scorers alone, and what they were trained for.

    ahn_config.json     base model's name and fingerprint, cell, window, facts of the training run
    model.safetensors   float32, keys as in the published checkpoints: model.layers.{i}.ahn.fn.{parameter};
                        where tokens are retained also model.layers.{i}.ahn.retention.{buffer}

Files are replaced one by one, each atomically, so a reader always finds a whole adapter.
"""

import hashlib
import itertools
import json
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pipeline.errors import UserError
from pipeline.model.files import ADAPTER_CONFIG, ADAPTER_WEIGHTS, find_weights, read_weights_header
from pipeline.whole_output import whole_file

ADAPTER_FORMAT_VERSION = 1
_PROBE_BYTES = 4096
_PROBES_PER_FILE = 256


def adapter_state(model: nn.Module) -> dict[str, Tensor]:
    """The AHN parameters and scorers by name, as they are (not copied)."""
    named = itertools.chain(model.named_parameters(), model.named_buffers())
    return {name: tensor.detach() for name, tensor in named if ".ahn." in name}


def save_adapter(folder: Path, state: dict[str, Tensor], info: dict) -> None:
    """Writes an adapter folder, over an older one if there is one.

    Args:
        folder: the adapter folder.
        state: what `adapter_state` returns, on any device.
        info: {"base_model", "base_fingerprint", "memory": {...}, "num_sink_tokens", "window_size",
            "training": {...}}, and of retained tokens "num_retained_tokens", "decision_interval", "has_scorer".
    """
    with whole_file(folder / ADAPTER_WEIGHTS) as weights:
        save_file({name: value.detach().cpu().contiguous() for name, value in state.items()}, weights)
    with whole_file(folder / ADAPTER_CONFIG) as config:
        config.write_text(json.dumps({"format_version": ADAPTER_FORMAT_VERSION, **info}, indent=1) + "\n")


def read_adapter(folder: Path) -> tuple[dict, dict[str, Tensor]]:
    """The info and the parameters of an adapter folder.

    Raises:
        UserError: a file is missing or not what it should be.
    """
    try:
        info = json.loads((folder / ADAPTER_CONFIG).read_text())
        state = load_file(folder / ADAPTER_WEIGHTS)
    except (OSError, json.JSONDecodeError, SafetensorError) as error:
        raise UserError(f"adapter {folder}: {error}") from error
    if info.get("format_version") != ADAPTER_FORMAT_VERSION:
        raise UserError(
            f"adapter {folder}: {ADAPTER_CONFIG} has format version {info.get('format_version')}, "
            f"this code reads {ADAPTER_FORMAT_VERSION}"
        )
    return info, state


def base_fingerprint(path_or_id: str) -> str:
    """Tells bases apart by a sample of their bytes: sha256 over tensor names, dtypes, shapes, and 256 places a file.

    A 30 GB base takes well under a second. A fine-tune that changes all tensors is another base; one that changes few,
    or few rows of one, may fall between the places and is not seen. What must be is named by all bytes
    (pipeline/teacher/fingerprint.py).

    Raises:
        UserError: no whole safetensors weights there.
    """
    digest = hashlib.sha256()
    tensors = []
    for file in find_weights(path_or_id):
        header, probes = _probe(file)
        tensors += [(name, entry["dtype"], entry["shape"]) for name, entry in header.items() if name != "__metadata__"]
        for probe in probes:
            digest.update(probe)
    digest.update(json.dumps(sorted(tensors)).encode())
    return digest.hexdigest()


def _probe(file: Path) -> tuple[dict, Iterator[bytes]]:
    size, (header, start) = file.stat().st_size, read_weights_header(file)

    def probes() -> Iterator[bytes]:
        with open(file, "rb") as stream:
            for i in range(_PROBES_PER_FILE):
                stream.seek(start + i * max(0, size - start - _PROBE_BYTES) // (_PROBES_PER_FILE - 1))
                yield stream.read(_PROBE_BYTES)

    return header, probes()
