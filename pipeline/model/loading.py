"""Loading bases and AHN models, and the window an AHN model infers with."""

import logging
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from pipeline.attention.window import WindowSpec
from pipeline.config import MemoryConfig
from pipeline.errors import UserError
from pipeline.model.adapter import base_fingerprint, read_adapter
from pipeline.model.augment import DEFAULT_AHN, UnsupportedModelError, ahn_model_class
from pipeline.model.files import ADAPTER_CONFIG, find_weights
from pipeline.model.published import find_published, read_published

VERIFIED_FAMILIES = ("qwen2", "qwen3", "llama", "mistral")
logger = logging.getLogger(__name__)


def load_base(
    path_or_id: str,
    *,
    memory: MemoryConfig,
    window: WindowSpec | None,
    dtype: torch.dtype,
    seed: int = 0,
) -> PreTrainedModel:
    """Loads a base with fresh memories: base frozen in `dtype`, AHN parameters trainable in float32.

    Args:
        path_or_id: folder or hub id of a CausalLM with safetensors weights.
        memory: cell and its initialisation.
        window: what the model infers with where a call does not say; None: 128 sinks + 32,640.
        dtype: of the base.
        seed: of the memories' initial values.

    Raises:
        UserError: no such model, or one that cannot be augmented.
    """
    base_config = load_config(path_or_id)
    model_class = ahn_model_class(causal_lm_class(base_config))
    ahn = {**DEFAULT_AHN, "cell": memory.cell, "init": memory.init}
    if window is not None:
        ahn |= {"num_sink_tokens": window.num_sink_tokens, "window_size": window.window_size}
    fields = {k: v for k, v in base_config.to_dict().items() if k not in ("model_type", "architectures", "dtype")}
    config = model_class.config_class(**fields, ahn=ahn)
    find_weights(path_or_id)
    ignored = model_class._keys_to_ignore_on_load_missing
    model_class._keys_to_ignore_on_load_missing = [r"\.ahn\."]  # a base has none: no warning for that
    try:
        model = model_class.from_pretrained(path_or_id, config=config, dtype=dtype, use_safetensors=True)
    except OSError as error:
        raise UserError(f"--model {path_or_id}: {' '.join(str(error).split())[:300]}") from error
    finally:
        model_class._keys_to_ignore_on_load_missing = ignored
    initialise_memories(model, seed)
    return freeze_base(model)


def load_config(path_or_id: str) -> PretrainedConfig:
    """The model's config.

    Raises:
        UserError: no config.json there, or of a type transformers does not know.
    """
    try:
        return AutoConfig.from_pretrained(path_or_id)
    except (OSError, ValueError) as error:
        raise UserError(f"--model {path_or_id}: {' '.join(str(error).split())[:300]}") from error


def initialise_memories(model: PreTrainedModel, seed: int) -> None:
    """Sets every memory to the initial values that the config asks for, a function of (seed, layer) alone."""
    for index, layer in enumerate(model.get_decoder().layers):
        generator = torch.Generator().manual_seed(seed * 100_003 + index)
        layer.ahn.float()  # a parameter missing from the base's files comes in the base's dtype
        parameters = dict(layer.ahn.fn.named_parameters())
        with torch.no_grad():
            values = layer.ahn.fn.initial_values(generator)
            if model.config.ahn["init"] == "long_memory":
                values |= layer.ahn.fn.long_memory_values()
            for name, value in values.items():
                parameters[name].copy_(value)


def freeze_base(model: PreTrainedModel) -> PreTrainedModel:
    """Only AHN parameters keep requires_grad."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".ahn." in name)
    return model


def set_window(model: PreTrainedModel, window: WindowSpec) -> None:
    """Changes what the model infers with; caches made before keep theirs."""
    model.config.ahn = {
        **model.config.ahn,
        "num_sink_tokens": window.num_sink_tokens,
        "window_size": window.window_size,
    }


def load_adapter(folder: Path, *, dtype: torch.dtype, base: str | None = None) -> PreTrainedModel:
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
    window = WindowSpec(info["num_sink_tokens"], info["window_size"])
    model = load_base(base, memory=MemoryConfig(**info["memory"]), window=window, dtype=dtype)
    return _fill_memories(model, state, f"adapter {folder}", base)


def _fill_memories(model: PreTrainedModel, state: dict[str, torch.Tensor], origin: str, base: str) -> PreTrainedModel:
    parameters = {name: p for name, p in model.named_parameters() if ".ahn." in name}
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


def load_model(path: str, *, dtype: torch.dtype, base: str | None = None) -> PreTrainedModel:
    """Loads an adapter folder (onto `base`, or the base it names), a published AHN checkpoint (folder or hub id, onto
    `base`), a merged folder, or a plain base.

    A plain base comes back as it is: full attention, no memory.

    Raises:
        UserError: nothing loadable there; an adapter whose base is missing or another one.
    """
    if (Path(path) / ADAPTER_CONFIG).is_file():
        return load_adapter(Path(path), dtype=dtype, base=base)
    published = find_published(path)
    if published is not None:
        if base is None:
            raise UserError(f"--model {path} is a published AHN checkpoint, which does not name its base: give --base")
        cell, state = read_published(published)
        model = load_base(base, memory=MemoryConfig(cell=cell), window=None, dtype=dtype)
        return _fill_memories(model, state, f"--model {path}", base)
    load_config(path)
    find_weights(path)
    try:
        return AutoModelForCausalLM.from_pretrained(path, dtype=dtype, use_safetensors=True)
    except OSError as error:
        raise UserError(f"--model {path}: {' '.join(str(error).split())[:300]}") from error


def causal_lm_class(config: PretrainedConfig) -> type[PreTrainedModel]:
    """The decoder language model of a config.

    Raises:
        UnsupportedModelError: transformers has none.
    """
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise UnsupportedModelError(f"{config.model_type}: transformers has no decoder language model of this type")
    if config.model_type not in VERIFIED_FAMILIES:
        logger.warning("%s is not among the families checked here (%s)", config.model_type, VERIFIED_FAMILIES)
    return MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
