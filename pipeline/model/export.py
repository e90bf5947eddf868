"""An adapter in other forms: merged with its base, or in the layout of the published checkpoints."""

import os
from pathlib import Path

import torch
from transformers import AutoTokenizer

from pipeline.errors import UserError
from pipeline.model.adapter import read_adapter
from pipeline.model.loading import load_adapter, load_config
from pipeline.model.published import save_published


def merge_adapter(
    adapter: Path, output: Path, *, dtype: torch.dtype | None = None, base: str | None = None, check: bool = True
) -> None:
    """Writes base and memories as one transformers folder, with the base's tokenizer files.

    It loads with AutoModelForCausalLM after `import pipeline`. The base is written in `dtype` (None: the one it is
    stored in), memories in float32.

    Raises:
        UserError: as `load_adapter`; `output` already there.
    """
    if output.exists():
        raise UserError(f"--output {output}: already exists; name a folder that does not")
    base = base or read_adapter(adapter)[0]["base_model"]
    dtype = dtype or load_config(base).dtype or torch.float32
    model = load_adapter(adapter, dtype=dtype, base=base, check=check)
    temporary = output.with_name(f".{output.name}.tmp-{os.getpid()}")
    model.save_pretrained(temporary)
    AutoTokenizer.from_pretrained(base).save_pretrained(temporary)
    os.replace(temporary, output)


def export_published(adapter: Path, output: Path, *, base: str | None = None) -> None:
    """Writes the memories alone in the published layout, with the base's config.json.

    Raises:
        UserError: the adapter or its base is not there; `output` already is.
    """
    info, state = read_adapter(adapter)
    save_published(output, info["memory"]["cell"], state, load_config(base or info["base_model"]).to_json_string())
