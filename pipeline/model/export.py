"""An adapter in other forms: merged with its base, or in the layout of the published checkpoints."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import PreTrainedTokenizerBase

from pipeline.errors import UserError
from pipeline.model.adapter import read_adapter
from pipeline.model.loading import load_adapter, load_config
from pipeline.model.published import save_published
from pipeline.tokenizer import load_tokenizer
from pipeline.whole_output import whole_folder

_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "vocab.*",
    "*.tiktoken",
    "spiece.model",
)
logger = logging.getLogger(__name__)


def merge_adapter(
    adapter: Path, output: Path, *, dtype: torch.dtype | None = None, base: str | None = None, check: bool = True
) -> None:
    """Writes base and memories as one transformers folder, with the base's tokenizer files if it has any.

    It loads with AutoModelForCausalLM after `import pipeline`. The base is written in `dtype` (None: the one it is
    stored in), memories in float32.

    Raises:
        UserError: as `load_adapter`; `output` already there, or it cannot be written; a damaged tokenizer.
    """
    base = base or read_adapter(adapter)[0]["base_model"]
    dtype, tokenizer = dtype or load_config(base).dtype or torch.float32, _load_tokenizer(base)
    with _writing(output), whole_folder(output) as unfinished:
        model = load_adapter(adapter, dtype=dtype, base=base, check=check)
        model.save_pretrained(unfinished)
        if tokenizer is None:
            logger.warning("%s has no tokenizer, so %s has none either", base, output)
        else:
            tokenizer.save_pretrained(unfinished)


def export_published(adapter: Path, output: Path, *, base: str | None = None) -> None:
    """Writes the memories alone in the published layout, with the base's config.json.

    Raises:
        UserError: the adapter or its base is not there; `output` already is, or it cannot be written.
    """
    info, state = read_adapter(adapter)
    with _writing(output):
        save_published(output, info["memory"]["cell"], state, load_config(base or info["base_model"]).to_json_string())


@contextmanager
def _writing(output: Path) -> Iterator[None]:
    if output.exists():
        raise UserError(f"--output {output}: already exists; name a folder that does not")
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = (isinstance(error, OSError) and error.strerror) or " ".join(str(error).split())
        raise UserError(f"--output {output} cannot be written: {reason}") from error


def _load_tokenizer(base: str) -> PreTrainedTokenizerBase | None:
    """The base's tokenizer; None for a folder without any.

    Raises:
        UserError: it cannot be read.
    """
    folder = Path(base)
    # By name: of some families transformers makes an empty tokenizer out of no file.
    if folder.is_dir() and not any(next(folder.glob(name), None) for name in _TOKENIZER_FILES):
        return None
    return load_tokenizer(base, "--base")
