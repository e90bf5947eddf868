"""An adapter in other forms: merged with its base, or in the layout of the published checkpoints."""

import logging
import shutil
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
        UserError: as `load_adapter`; `output` already there, or it cannot be written.
    """
    base = base or read_adapter(adapter)[0]["base_model"]
    dtype = dtype or load_config(base).dtype or torch.float32
    with _writing(output), whole_folder(output) as unfinished:
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
        reason = (isinstance(error, OSError) and error.strerror) or " ".join(str(error).split())
        raise UserError(f"--output {output} cannot be written: {reason}") from error


def _copy_tokenizer(base: str, folder: Path) -> bool:
    """Copies the base's tokenizer files; False: it has none.

    As they are: what transformers makes of one, and would save, has been seen to be another tokenizer.
    """
    source = Path(base) if Path(base).is_dir() else Path(snapshot_download(base, allow_patterns=list(_TOKENIZER_FILES)))
    for file in {file for name in _TOKENIZER_FILES for file in source.glob(name)}:
        shutil.copyfile(file, folder / file.name)
    return any(next(folder.glob(name), None) for name in _VOCABULARIES)
