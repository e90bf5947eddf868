"""The adapter folder: the AHN parameters alone, and what they were trained for.

    ahn_config.json     base model's name and fingerprint, cell, window, facts of the training run
    model.safetensors   float32, keys as in the published checkpoints: model.layers.{i}.ahn.fn.{parameter}

Files are replaced one by one, each atomically, so a reader always finds a whole adapter.
"""

import hashlib
import json
import os
import struct
from collections.abc import Iterator
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pipeline.errors import UserError
from pipeline.model.files import ADAPTER_CONFIG, ADAPTER_WEIGHTS

ADAPTER_FORMAT_VERSION = 1
_PROBE_BYTES = 4096
_PROBES_PER_FILE = 256


def adapter_state(model: nn.Module) -> dict[str, Tensor]:
    """The AHN parameters by name, as they are (not copied)."""
    return {name: p.detach() for name, p in model.named_parameters() if ".ahn." in name}


def save_adapter(folder: Path, state: dict[str, Tensor], info: dict) -> None:
    """Writes an adapter folder, over an older one if there is one.

    Args:
        folder: the adapter folder.
        state: AHN parameters by name, on any device.
        info: {"base_model", "base_fingerprint", "memory": {...}, "num_sink_tokens", "window_size",
            "training": {...}}.
    """
    folder.mkdir(parents=True, exist_ok=True)
    weights = folder / f".{ADAPTER_WEIGHTS}.tmp"
    save_file({name: value.detach().cpu().contiguous() for name, value in state.items()}, weights)
    _publish(weights, folder / ADAPTER_WEIGHTS)
    config = folder / f".{ADAPTER_CONFIG}.tmp"
    config.write_text(json.dumps({"format_version": ADAPTER_FORMAT_VERSION, **info}, indent=1) + "\n")
    _publish(config, folder / ADAPTER_CONFIG)


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


def _publish(temporary: Path, final: Path) -> None:
    with open(temporary, "rb") as file:
        os.fsync(file.fileno())
    os.replace(temporary, final)
    directory = os.open(final.parent, os.O_RDONLY)
    os.fsync(directory)
    os.close(directory)


def base_fingerprint(path_or_id: str) -> str:
    """Identifies a base's weights: sha256 over tensor names, dtypes, shapes and probes of their bytes.

    Every file's header is read whole and its data at 256 evenly spaced places, so a 30 GB base takes well under a
    second; any fine-tune of a base changes it.

    Raises:
        UserError: no safetensors weights there.
    """
    digest = hashlib.sha256()
    tensors = []
    for file in _weight_files(path_or_id):
        header, probes = _probe(file)
        tensors += [(name, entry["dtype"], entry["shape"]) for name, entry in header.items() if name != "__metadata__"]
        for probe in probes:
            digest.update(probe)
    digest.update(json.dumps(sorted(tensors)).encode())
    return digest.hexdigest()


def _weight_files(path_or_id: str) -> list[Path]:
    folder = Path(path_or_id)
    if not folder.is_dir():
        try:
            folder = Path(snapshot_download(path_or_id, allow_patterns=["*.safetensors", "*.json"]))
        except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
            raise UserError(
                f"--model {path_or_id}: neither a local folder nor a model on the hub "
                f"({' '.join(str(error).split())[:200]})"
            ) from error
    files = sorted(folder.glob("model*.safetensors"))
    if not files:
        raise UserError(
            f"--model {path_or_id}: no model*.safetensors in {folder}; other weight formats are not read "
            f"(convert with save_pretrained)"
        )
    return files


def _probe(file: Path) -> tuple[dict, Iterator[bytes]]:
    size = file.stat().st_size
    with open(file, "rb") as stream:
        header_size = struct.unpack("<Q", stream.read(8))[0]
        header = json.loads(stream.read(header_size))
    start = 8 + header_size

    def probes() -> Iterator[bytes]:
        with open(file, "rb") as stream:
            for i in range(_PROBES_PER_FILE):
                stream.seek(start + i * max(0, size - start - _PROBE_BYTES) // (_PROBES_PER_FILE - 1))
                yield stream.read(_PROBE_BYTES)

    return header, probes()
