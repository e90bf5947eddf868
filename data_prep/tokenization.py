"""Turns text into token ids with a model's own tokenizer.

The tokenizer is what AutoTokenizer makes of the files (`pipeline.tokenizer`), loaded once a run; whoever tokenises has
its pipeline as a tokenizer.json and needs neither torch nor transformers. The ids are the model's, with one deliberate
choice: a special token that is spelled out in a document stays text unless the user says otherwise, so that no document
can forge a turn or an end of text.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from huggingface_hub import snapshot_download
from tokenizers import Tokenizer

from data_prep.chat_template import TEMPLATE_FILES, ChatTemplate, find_chat_template
from data_prep.fast_tokenizer import FastEncoder
from data_prep.surroundings import find_surroundings, read_surroundings
from data_prep.text_rules import PIECE_CHARS, UnsupportedTokenizer, read_text_rules, split_at_safe_cuts
from pipeline.data.shard_format import DataError, tokenizer_fingerprint
from pipeline.data.shard_io import write_file
from pipeline.tokenizer import fingerprint, gives_ids_of, load_tokenizer, read_pipeline

TOKENIZER_FILE = "tokenizer.json"
MODEL_FILE = "config.json"
ADDED_TOKENS_FILE = "added_tokens.json"  # of older tokenizers
EOS_FILES = ("tokenizer_config.json", "generation_config.json")
WANTED_FILES = [TOKENIZER_FILE, MODEL_FILE, ADDED_TOKENS_FILE, *EOS_FILES, *TEMPLATE_FILES]


@dataclass(frozen=True)
class TokenizerSpec:
    """A tokenizer that was found and checked. `eos_token_id` is None when no EOS is appended; a special token spelled
    out in a text stays text ("plain") or is the token ("special").

    `path` is the tokenizer.json that has its ids; where the model's own file has others, `content` holds it instead
    until `stored` has written it.
    """

    path: str
    name: str
    sha256: str
    eos_token_id: int | None
    special_tokens_in_text: Literal["plain", "special"] = "plain"
    chat_template: ChatTemplate | None = None
    content: str | None = None

    def read(self) -> dict[str, Any]:
        """The parsed tokenizer.json; it truncates, pads and draws nothing."""
        content = json.loads(Path(self.path).read_bytes() if self.content is None else self.content)
        if content["model"].get("dropout"):
            content["model"]["dropout"] = None
        return content | {"truncation": None, "padding": None}

    def stored(self, folder: Path) -> "TokenizerSpec":
        """The same for other processes: with a content of its own written into `folder`."""
        if self.content is None:
            return self
        path = folder.absolute() / TOKENIZER_FILE
        write_file(path, self.content.encode())
        return replace(self, path=str(path), content=None)


def resolve_tokenizer(
    name_or_path: str, append_eos: bool, special_tokens_in_text: Literal["plain", "special"] = "plain"
) -> TokenizerSpec:
    """Finds the tokenizer and, with `append_eos`, its end-of-text token.

    Args:
        name_or_path: folder with tokenizer.json, or a hub id.
        append_eos: whether an EOS will be appended to every document.
        special_tokens_in_text: see `TokenizerSpec`.

    Raises:
        DataError: not found, not a tokenizer, or without an EOS token where one is needed.
    """
    folder = _locate(name_or_path)
    path = folder / TOKENIZER_FILE
    if not path.is_file():
        raise DataError(f"--tokenizer {name_or_path}: {folder} holds no {TOKENIZER_FILE}")
    try:
        sha256 = tokenizer_fingerprint(path)
    except (ValueError, RecursionError, AttributeError, TypeError) as error:
        raise DataError(f"--tokenizer {name_or_path}: {path} is not a JSON object ({error})") from error
    tokenizer = load_tokenizer(name_or_path, "--tokenizer")
    pipeline, content = read_pipeline(tokenizer, path), None
    if not gives_ids_of(pipeline, path):
        sha256, content = fingerprint(tokenizer, path), json.dumps(pipeline, ensure_ascii=False)
    name = folder.resolve().name if Path(name_or_path).is_dir() else name_or_path
    eos_token_id = _find_eos(folder, tokenizer.backend_tokenizer, name_or_path) if append_eos else None
    template = find_chat_template(tokenizer, f"--tokenizer {name_or_path}")
    return TokenizerSpec(str(path), name, sha256, eos_token_id, special_tokens_in_text, template, content)


def _locate(name_or_path: str) -> Path:
    if Path(name_or_path).is_dir():
        return Path(name_or_path)
    try:
        return Path(snapshot_download(name_or_path, allow_patterns=WANTED_FILES))
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
    token_id = tokenizer.token_to_id(token) if isinstance(token, str) else first_id
    # AutoTokenizer makes a new id for a named token that the files do not have: the model has no embedding of it.
    is_new = isinstance(token, str) and token not in _tokens_of_files(folder, configs[0])
    if is_new or not isinstance(token_id, int) or tokenizer.id_to_token(token_id) is None:
        raise DataError(
            f"--append_eos: no usable eos_token in {' or '.join(EOS_FILES)} of {name_or_path} (found "
            f"{token if token is not None else ids}); add it there, or pass --append_eos false"
        )
    return token_id


def _tokens_of_files(folder: Path, config: dict) -> set[str]:
    content = json.loads((folder / TOKENIZER_FILE).read_bytes())
    vocabulary = content["model"]["vocab"]  # of a Unigram model [token, score] each
    added = [*content["added_tokens"], *config.get("added_tokens_decoder", {}).values()]
    older = _read_json(folder / ADDED_TOKENS_FILE)
    found = {token if isinstance(token, str) else token[0] for token in vocabulary}
    return found | {token["content"] for token in added} | older.keys()


def _read_json(path: Path) -> dict:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise DataError(f"{path} is not JSON ({error})") from error
    return content if isinstance(content, dict) else {}


class DocumentTokenizer:
    """Encodes texts; the ids do not depend on the backend.

    Attributes:
        prefix, suffix: ids that belong before and after every text: what the tokenizer's own post-processor puts
            there (BOS, say), and the EOS of `spec` unless the post-processor adds it already.
        num_fallbacks: pieces of text that tiktoken could not encode and `tokenizers` did.
    """

    def __init__(self, spec: TokenizerSpec, backend: str) -> None:
        """Loads what `backend` ("tiktoken" or "tokenizers", see `choose_backend`) needs, no more.

        Raises:
            UnsupportedTokenizer: this tokenizer cannot be had with "tiktoken".
        """
        self._spec = spec
        self._reference: Tokenizer | None = None
        self._fast: FastEncoder | None = None
        self.num_fallbacks = 0
        content = spec.read()
        if backend == "tiktoken":
            rules = read_text_rules(content)
            self._fast = FastEncoder(content, rules, spec.special_tokens_in_text == "special")
            self._can_cut = True
            self.prefix, suffix = read_surroundings(content.get("post_processor"))
        else:
            self._can_cut = _has_known_rules(content)
            self.prefix, suffix = find_surroundings(self._load_reference())
        adds_eos = spec.eos_token_id is None or suffix[-1:] == (spec.eos_token_id,)
        self.suffix = suffix if adds_eos else (*suffix, spec.eos_token_id)

    def encode(self, text: str) -> np.ndarray:
        """uint32 ids [n] of the text alone, without prefix and suffix; may be read-only."""
        if len(text) < 2 * PIECE_CHARS:
            return self._encode_piece(text)
        return np.concatenate(list(self.encode_stream([text])))

    def encode_stream(self, chunks: Iterable[str]) -> Iterator[np.ndarray]:
        """Yields the ids of a text that arrives in chunks, uint32 [n_i]: one after the other they are those of
        `encode("".join(chunks))`. See `split_at_safe_cuts` for the memory; a tokenizer of unknown rules gets the whole
        text at once.
        """
        for piece in split_at_safe_cuts(chunks) if self._can_cut else ("".join(chunks),):
            yield self._encode_piece(piece)

    def _encode_piece(self, piece: str) -> np.ndarray:
        if self._fast is not None:
            try:
                return self._fast.encode(piece)
            except (KeyboardInterrupt, SystemExit, MemoryError):
                raise
            except BaseException:  # a panic of tiktoken is no Exception; a text it cannot take is not lost
                self.num_fallbacks += 1
        encoding = self._load_reference().encode_batch_fast([piece], add_special_tokens=False)[0]
        return np.array(encoding.ids, np.uint32)

    def _load_reference(self) -> Tokenizer:
        if self._reference is None:
            self._reference = load_reference(self._spec)
        return self._reference


def load_reference(spec: TokenizerSpec) -> Tokenizer:
    """The tokenizer of `tokenizers`, which says what the ids are; nothing is truncated or padded."""
    tokenizer = Tokenizer.from_file(spec.path) if spec.content is None else Tokenizer.from_str(spec.content)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    if getattr(tokenizer.model, "dropout", None):
        tokenizer.model.dropout = None
    tokenizer.encode_special_tokens = spec.special_tokens_in_text == "plain"
    return tokenizer


def _has_known_rules(content: dict) -> bool:
    try:
        read_text_rules(content)
    except UnsupportedTokenizer:
        return False
    return True
