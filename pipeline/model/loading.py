"""Loading bases and AHN models, and the window an AHN model infers with."""

from dataclasses import asdict, fields
from pathlib import Path

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from pipeline.attention.window import WindowSpec
from pipeline.config import MemoryConfig
from pipeline.errors import UserError
from pipeline.model.adapter import adapter_state, base_fingerprint, read_adapter
from pipeline.model.augment import augment, check_complete
from pipeline.model.base_check import augment_checked, check_family
from pipeline.model.files import ADAPTER_CONFIG, find_weights
from pipeline.model.freezing import freeze_base
from pipeline.model.output_head import check_output_head
from pipeline.model.published import find_published, read_published
from pipeline.model.supported import causal_lm_class, check_config


def load_base(
    path_or_id: str,
    *,
    memory: MemoryConfig,
    window: WindowSpec | None,
    dtype: torch.dtype,
    has_scorer: bool = False,
    seed: int = 0,
    check: bool = True,
) -> PreTrainedModel:
    """Loads a base with fresh memories: base frozen in `dtype`, AHN parameters trainable in float32.

    Args:
        path_or_id: folder or hub id of a CausalLM with safetensors weights.
        memory: cell and its initialisation.
        window: what the model infers with where a call does not say; None: 128 sinks + 32,640.
        dtype: of the base.
        has_scorer: whether memories can choose tokens to retain; they can where the window retains any.
        seed: of the memories' initial values.
        check: whether to compute that AHN is exact on this base (base_check.py), where that is not known yet, and to
            compare its head and first layers, whose weights are read for that.

    Raises:
        UserError: no such model, or one that cannot be augmented.
    """
    config = load_config(path_or_id)
    check_config(config)
    find_weights(path_or_id)
    if check:
        check_family(config)
    base = _read_weights(causal_lm_class(type(config)), path_or_id, dtype)
    ahn = {"cell": memory.cell, "init": memory.init, "has_scorer": has_scorer}
    if window is not None:
        ahn |= asdict(window) | {"has_scorer": has_scorer or window.num_retained_tokens > 0}
    model = augment_checked(base, ahn, seed) if check else augment(base, ahn, seed)
    if check:
        check_output_head(model)
    return freeze_base(model)


def _read_weights(model_class: type, path_or_id: str, dtype: torch.dtype) -> PreTrainedModel:
    """A model of a class or Auto class, all of whose tensors are in its files.

    Raises:
        UserError: they are not, or do not fit.
    """
    try:
        model, report = model_class.from_pretrained(
            path_or_id, dtype=dtype, use_safetensors=True, output_loading_info=True
        )
    except UserError:
        raise
    except (OSError, ValueError, RuntimeError, ImportError, SafetensorError) as error:
        raise UserError(f"--model {path_or_id}: {' '.join(str(error).split())[:300]}") from error
    check_complete(report["missing_keys"], path_or_id)
    return model


def load_config(path_or_id: str) -> PretrainedConfig:
    """The model's config.

    Raises:
        UserError: no config.json there, or of a type transformers does not know.
    """
    try:
        return AutoConfig.from_pretrained(path_or_id)
    except (OSError, ValueError, StrictDataclassError) as error:
        raise UserError(f"--model {path_or_id}: {' '.join(str(error).split())[:300]}") from error


def set_window(model: PreTrainedModel, window: WindowSpec) -> None:
    """Changes what the model infers with; caches made before keep theirs.

    Raises:
        UserError: it retains tokens, and the model has no scorer that chooses them.
    """
    if window.num_retained_tokens and not model.config.ahn["has_scorer"]:
        raise UserError(f"{window} retains tokens, and the model was trained without a scorer that chooses them")
    model.config.ahn = model.config.ahn | asdict(window)


def load_adapter(folder: Path, *, dtype: torch.dtype, base: str | None = None, check: bool = True) -> PreTrainedModel:
    """Loads the adapter's base (or `base`) in `dtype` and the adapter's memories into it.

    Raises:
        UserError: the base is missing, is another one (fingerprint), or its shapes do not fit the adapter.
    """
    info, state = read_adapter(folder)
    base = base or info["base_model"]
    found = base_fingerprint(base)
    if found != info["base_fingerprint"]:
        raise UserError(
            f"adapter {folder} was trained on {info['base_model']} (fingerprint {info['base_fingerprint'][:12]}), "
            f"but --base {base} has fingerprint {found[:12]}"
        )
    window = WindowSpec(**{field.name: info.get(field.name, field.default) for field in fields(WindowSpec)})
    options = {"window": window, "has_scorer": info.get("has_scorer", False), "dtype": dtype, "check": check}
    model = load_base(base, memory=MemoryConfig(**info["memory"]), **options)
    return _fill_memories(model, state, f"adapter {folder}", base)


def _fill_memories(model: PreTrainedModel, state: dict[str, torch.Tensor], origin: str, base: str) -> PreTrainedModel:
    parameters = adapter_state(model)
    shapes, wanted = ({n: list(x.shape) for n, x in named.items()} for named in (state, parameters))
    if shapes != wanted:
        name = next(n for n in sorted(shapes.keys() | wanted.keys()) if shapes.get(n) != wanted.get(n))
        raise UserError(
            f"{origin} does not fit the base {base}: {name} is {shapes.get(name, 'missing')} there, "
            f"{wanted.get(name, 'missing')} here"
        )
    with torch.no_grad():
        for name, value in state.items():
            parameters[name].copy_(value)
    return model


def load_model(path: str, *, dtype: torch.dtype, base: str | None = None, check: bool = True) -> PreTrainedModel:
    """Loads an adapter folder (onto `base`, or the base it names), a published AHN checkpoint (folder or hub id, onto
    `base`), a merged folder, or a plain base.

    A plain base comes back as it is: full attention, no memory. `check`: as in `load_base`.

    Raises:
        UserError: nothing loadable there; an adapter whose base is missing or another one.
    """
    if (Path(path) / ADAPTER_CONFIG).is_file():
        return load_adapter(Path(path), dtype=dtype, base=base, check=check)
    published = find_published(path)
    if published is not None:
        if base is None:
            raise UserError(f"--model {path} is a published AHN checkpoint, which does not name its base: give --base")
        cell, state = read_published(published)
        model = load_base(base, memory=MemoryConfig(cell=cell), window=None, dtype=dtype, check=check)
        return _fill_memories(model, state, f"--model {path}", base)
    config = load_config(path)
    find_weights(path)
    if check and hasattr(config, "ahn"):
        check_family(config)
    model = _read_weights(AutoModelForCausalLM, path, dtype)
    return freeze_base(model) if hasattr(config, "ahn") else model
