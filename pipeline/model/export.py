"""An adapter in other forms: merged with its base, or in the layout of the published checkpoints."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError

from pipeline.errors import UserError
from pipeline.model.adapter import read_adapter
from pipeline.model.loading import load_adapter, load_config
from pipeline.model.published import save_published
from pipeline.whole_output import whole_folder

_VOCABULARIES = ("tokenizer.json", "vocab.json", "*.model", "*.tiktoken")
_TOKENIZER_FILES = (
    *(*_VOCABULARIES, "tokenizer_config.json", "vocab.*", "merges.txt", "special_tokens_map.json"),
    *("added_tokens.json", "chat_template*"),
)
logger = logging.getLogger(__name__)


def merge_adapter(
    adapter: Path, output: Path, *, dtype: torch.dtype | None = None, base: str | None = None, check: bool = True
) -> None:
    """Writes base and memories as one transformers folder, with the base's tokenizer files if it has any.

    It loads with AutoModelForCausalLM after `import pipeline`. The base is written in `dtype` (None: the one it is
    stored in), memories in float32.

    Raises:
        UserError: as `load_adapter`; a file of the base cannot be read; `output` is there, or cannot be written.
    """
    base = base or read_adapter(adapter)[0]["base_model"]
    dtype = dtype or load_config(base).dtype or torch.float32
    with _writing(output), whole_folder(output) as unfinished:
        with _reading(base):
            model = load_adapter(adapter, dtype=dtype, base=base, check=check)
        model.save_pretrained(unfinished)
        if not _copy_tokenizer(base, unfinished):
            logger.warning("%s has no tokenizer, so %s has none either", base, output)


def export_published(adapter: Path, output: Path, *, base: str | None = None) -> None:
    """Writes the memories alone in the published layout, with the base's config.json.

    Raises:
        UserError: the adapter or its base is not there, or it has scorers, which the layout does not know; `output`
            already is there, or it cannot be written.
    """
    info, state = read_adapter(adapter)
    if info.get("has_scorer"):
        raise UserError(
            f"--layout published: {adapter} has scorers that choose retained tokens (num_retained_tokens "
            f"{info['num_retained_tokens']}), which the published layout has no place for; use --layout merged"
        )
    with _writing(output):
        save_published(output, info["memory"]["cell"], state, load_config(base or info["base_model"]).to_json_string())


@contextmanager
def _writing(output: Path) -> Iterator[None]:
    if output.exists():
        raise UserError(f"--output {output}: already exists; name a folder that does not")
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise UserError(f"--output {output} cannot be written: {_reason(error)}") from error


@contextmanager
def _reading(base: str) -> Iterator[None]:
    """Around what only reads: the error is not about the output."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        named = getattr(error, "filename", None)
        where = f"{named} of the base {base}" if named else f"the base {base}"
        raise UserError(f"{where} cannot be read: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    return (isinstance(error, OSError) and error.strerror) or " ".join(str(error).split())


def _copy_tokenizer(base: str, folder: Path) -> bool:
    """Copies the base's tokenizer files; False: it has none.

    As they are: what transformers makes of one, and would save, has been seen to be another tokenizer.
    """
    with _reading(base):
        is_local = Path(base).is_dir()
        source = Path(base if is_local else snapshot_download(base, allow_patterns=list(_TOKENIZER_FILES)))
        files = {file for name in _TOKENIZER_FILES for file in source.glob(name)}
        contents = {file.name: file.read_bytes() for file in files}
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return any(next(folder.glob(name), None) for name in _VOCABULARIES)
