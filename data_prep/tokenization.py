"""Turns text into token ids with a model's own tokenizer.json. No torch, no transformers.

The ids are those of the model's fast tokenizer, with one deliberate choice: a special token that is spelled
out in a document stays text, so that no document can forge a turn or an end of text.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from huggingface_hub import snapshot_download
from tokenizers import Tokenizer

from data_prep.packing import TokenisedDocument
from data_prep.readers import RawDocument
from pipeline.data.shard_format import DataError, tokenizer_fingerprint

TOKENIZER_FILE = "tokenizer.json"
EOS_FILES = ("tokenizer_config.json", "generation_config.json")
BATCH_BYTES = 1 << 20


@dataclass(frozen=True)
class TokenizerSpec:
    """A tokenizer that was found and checked. `eos_token_id` is None when no EOS is appended."""

    path: str
    name: str
    sha256: str
    eos_token_id: int | None


def resolve_tokenizer(name_or_path: str, append_eos: bool) -> TokenizerSpec:
    """Finds the tokenizer and, with `append_eos`, its end-of-text token.

    Args:
        name_or_path: folder with tokenizer.json, or a hub id.
        append_eos: whether an EOS will be appended to every document.

    Raises:
        DataError: not found, not a tokenizer, or without an EOS token where one is needed.
    """
    folder = _locate(name_or_path)
    path = folder / TOKENIZER_FILE
    if not path.is_file():
        raise DataError(f"--tokenizer {name_or_path}: {folder} holds no {TOKENIZER_FILE}")
    try:
        sha256 = tokenizer_fingerprint(path)
    except ValueError as error:
        raise DataError(f"--tokenizer {name_or_path}: {path} is not JSON ({error})") from error
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing more special
        raise DataError(f"--tokenizer {name_or_path}: {path} is not a tokenizer ({error})") from error
    name = folder.resolve().name if Path(name_or_path).is_dir() else name_or_path
    eos_token_id = _find_eos(folder, tokenizer, name_or_path) if append_eos else None
    return TokenizerSpec(str(path), name, sha256, eos_token_id)


def _locate(name_or_path: str) -> Path:
    if Path(name_or_path).is_dir():
        return Path(name_or_path)
    try:
        return Path(snapshot_download(name_or_path, allow_patterns=[TOKENIZER_FILE, *EOS_FILES]))
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise DataError(
            f"--tokenizer {name_or_path}: neither a folder nor a hub id that could be fetched ({reason})"
        ) from error


def _find_eos(folder: Path, tokenizer: Tokenizer, name_or_path: str) -> int:
    """The id of tokenizer_config.json's eos_token, else generation_config.json's (first) eos_token_id."""
    configs = [_read_json(folder / name) for name in EOS_FILES]
    token, ids = configs[0].get("eos_token"), configs[1].get("eos_token_id")
    token = token.get("content") if isinstance(token, dict) else token
    first_id = ids[0] if isinstance(ids, list) and ids else ids
    token_id = first_id if token is None else tokenizer.token_to_id(token)
    if not isinstance(token_id, int) or tokenizer.id_to_token(token_id) is None:
        raise DataError(
            f"--append_eos: no usable eos_token in {' or '.join(EOS_FILES)} of {name_or_path} (found "
            f"{token if token is not None else ids}); add it there, or pass --append_eos false"
        )
    return token_id


def _read_json(path: Path) -> dict:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise DataError(f"{path} is not JSON ({error})") from error
    return content if isinstance(content, dict) else {}


class DocumentTokenizer:
    """Encodes documents in batches: BOS as the tokenizer's own post-processor adds it, EOS as `spec` says."""

    def __init__(self, spec: TokenizerSpec) -> None:
        self._tokenizer = Tokenizer.from_file(spec.path)
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.encode_special_tokens = True
        adds_eos = self._tokenizer.encode("a").ids[-1:] == [spec.eos_token_id]
        self._suffix = [] if spec.eos_token_id is None or adds_eos else [spec.eos_token_id]

    def tokenise(self, documents: Iterable[RawDocument]) -> Iterator[TokenisedDocument]:
        """Yields the documents in order; one may come out with no token at all."""
        for batch in _batches(documents):
            for document, encoding in zip(
                batch, self._tokenizer.encode_batch_fast([d.text for d in batch]), strict=True
            ):
                ids = np.array(encoding.ids + self._suffix, np.uint32)
                yield TokenisedDocument(document.id, document.origin, ids)


def _batches(documents: Iterable[RawDocument]) -> Iterator[list[RawDocument]]:
    """Groups documents to about BATCH_BYTES of text; a longer document is a batch of its own."""
    batch: list[RawDocument] = []
    size = 0
    for document in documents:
        if batch and size + document.origin["bytes"] > BATCH_BYTES:
            yield batch
            batch, size = [], 0
        batch.append(document)
        size += document.origin["bytes"]
    if batch:
        yield batch
