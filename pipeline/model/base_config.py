"""config.json of a base as plain JSON: for checks before torch and transformers are imported."""

import json
from pathlib import Path

from pipeline.config import require
from pipeline.errors import UserError
from pipeline.model.files import holds_memories_alone


def read_base_config(model: str) -> dict:
    """config.json of a base, a folder or a hub id.

    Raises:
        UserError: it cannot be read, or is of a model with memories, whose base is meant.
    """
    folder = Path(model)
    try:
        if folder.is_dir():
            path = folder / "config.json"
        else:
            from huggingface_hub import hf_hub_download  # only for hub ids

            path = Path(hf_hub_download(model, "config.json"))
        settings = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"--model {model}: config.json cannot be read: {' '.join(str(error).split())}") from error
    has_memories = isinstance(settings, dict) and settings.get("ahn") is not None
    require(
        not has_memories and not holds_memories_alone(folder),
        f"--model {model} is an AHN model, the teacher is its base; name that one's folder",
    )
    for name in ("hidden_size", "vocab_size", "num_attention_heads"):
        value = settings.get(name) if isinstance(settings, dict) else None
        require(type(value) is int, f"--model {model}: config.json has no whole number as {name}, found {value!r}")
    return settings
