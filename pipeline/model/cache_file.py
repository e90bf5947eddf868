"""A cache as one safetensors file: a long document absorbed once, then asked many questions in other processes.

The file names the model that made it (a digest over probes of all weights) and is refused by any other.
"""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from pipeline.attention.window import WindowSpec
from pipeline.errors import UserError
from pipeline.model.cache import HippocampusCache
from pipeline.model.supported import sliding_windows
from pipeline.whole_output import whole_file

FORMAT_VERSION = 1
_PROBE_ELEMENTS = 64


def _scorers(model: nn.Module) -> list[tuple[str, Tensor]]:
    return [(name, buffer) for name, buffer in model.named_buffers() if ".ahn." in name]


def model_fingerprint(model: nn.Module) -> str:
    """sha256 over names, shapes, dtypes and the first and last elements of all parameters and scorers; milliseconds.

    Raises:
        UserError: weights are offloaded, and so not there to be looked at.
    """
    digest = hashlib.sha256()
    for name, parameter in (*model.named_parameters(), *_scorers(model)):
        if parameter.is_meta:
            raise UserError(
                f"{name} is offloaded by device_map, and a cache's file names the weights that made it: load the model "
                f"without offload to save or load a cache"
            )
        flat = parameter.detach().flatten()
        probe = torch.cat([flat[:_PROBE_ELEMENTS], flat[-_PROBE_ELEMENTS:]]).double().cpu()
        digest.update(f"{name} {list(parameter.shape)} {parameter.dtype}".encode() + probe.numpy().tobytes())
    return digest.hexdigest()


def save_cache(cache: HippocampusCache, model: nn.Module, path: Path) -> None:
    """Writes the cache; an older file of that name is replaced atomically.

    Raises:
        UserError: it cannot be written.
    """
    tensors = {
        f"{index}.{name}": value.contiguous().cpu()
        for index, layer in enumerate(cache.layers)
        for name, value in layer.tensors().items()
    }
    if cache.layers[0].padding is not None:  # the same in all layers
        tensors["padding"] = cache.layers[0].padding.cpu()
    description = {
        "format_version": FORMAT_VERSION,
        "window": asdict(cache.window),
        "sliding_windows": sliding_windows(model.config),
        "num_seen": cache.get_seq_length(),
        "model_fingerprint": model_fingerprint(model),
    }
    try:
        with whole_file(path) as unfinished:
            save_file(tensors, unfinished, metadata={"ahn_cache": json.dumps(description)})
    except (OSError, SafetensorError) as error:
        raise UserError(f"--save_cache {path} cannot be written: {error}") from error


def load_cache(path: Path, model: nn.Module) -> HippocampusCache:
    """Reads a cache back onto the model's device.

    Raises:
        UserError: not a cache, damaged, or made by another model.
    """
    try:
        with safe_open(path, "pt", device=str(next(model.parameters()).device)) as file:
            description = json.loads((file.metadata() or {}).get("ahn_cache", "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except (OSError, SafetensorError, json.JSONDecodeError) as error:
        raise UserError(f"cache {path} cannot be read: {error}") from error
    if description.get("format_version") != FORMAT_VERSION:
        raise UserError(f"{path} is no cache of format version {FORMAT_VERSION}: {description or 'no description'}")
    if description["model_fingerprint"] != model_fingerprint(model):
        raise UserError(f"cache {path} was made by a model with other weights; absorb the document again with this one")
    own_windows = list(sliding_windows(model.config))
    if description.get("sliding_windows", [None] * len(own_windows)) != own_windows:
        raise UserError(f"cache {path} was made with other sliding windows of the base's own layers: {own_windows} now")
    cache = HippocampusCache(model.config, WindowSpec(**description["window"]))
    for index, layer in enumerate(cache.layers):
        own = {n.removeprefix(f"{index}."): t for n, t in tensors.items() if n.startswith(f"{index}.")}
        if "keys" not in own:  # saved before anything was absorbed
            continue
        layer.lazy_initialization(own["keys"], own["values"])
        layer.keys, layer.values = own["keys"], own["values"]
        layer.load(own)
        layer.padding, layer.num_seen = tensors.get("padding"), description["num_seen"]
    return cache
