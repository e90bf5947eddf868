"""From a work unit's parts of input files to tokenised documents; every document that is left out is counted."""

import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np

from data_prep.conversations import ConversationEncoder
from data_prep.dedup import ContentHash, hash_messages, hash_unreadable
from data_prep.packing import TokenisedDocument
from data_prep.readers import Conversation, Extent, InvalidDocument, RawDocument, read_documents
from data_prep.sources import Source
from data_prep.tokenization import DocumentTokenizer, TokenizerSpec

MAX_FIELD_NAME, MAX_FIELDS = 60, 50
OTHER_FIELDS = "other fields"


@dataclass(frozen=True)
class DocumentSpec:
    """How a document becomes tokens, and which are left out; lengths in tokens.

    `max_conversation_tokens`: a longer conversation is left out, since a cut one would train answers without what they
    answer.
    """

    tokenizer: TokenizerSpec
    backend: str
    min_tokens: int
    max_tokens: int | None
    max_conversation_tokens: int


@dataclass
class Counts:
    """What became of the documents: `dropped` by file name and reason; `ignored` by file name and field that may change
    a conversation's meaning and was not read, of the documents that are kept.
    """

    dropped: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    ignored: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    documents: int = 0
    text_bytes: int = 0
    num_fallbacks: int = 0


def hash_documents(extents: Iterable[Extent], source: Source) -> bytes:
    """Hashes of the readable documents, 16 bytes each, in order."""
    hashes = bytearray()
    for extent in extents:
        for raw in read_documents(extent, source, Counter()):
            hashes += _hash(raw)
    return bytes(hashes)


def _hash(raw: RawDocument) -> bytes:
    if isinstance(raw.content, Conversation):
        return _hash_conversation(raw.content)
    content_hash = ContentHash("text")
    try:
        for chunk in _chunks(raw.content):
            content_hash.update(chunk)
    except InvalidDocument:
        return hash_unreadable(raw.id)
    return content_hash.digest()


def _hash_conversation(conversation: Conversation) -> bytes:
    beside = conversation.tools, conversation.documents, sorted(conversation.untrained)
    return hash_messages(conversation.messages, *beside)


def _chunks(content: str | Iterator[str]) -> Iterable[str]:
    return [content] if isinstance(content, str) else content


class DocumentReader:
    """Reads, filters and tokenises the documents of one work unit.

    Args:
        duplicates: uint8, 1 for each readable document that is left out as a copy; None: none is, and `hashes` collects
            the documents' hashes.
        scratch: folder for the ids of texts that are too long to be held in memory.
    """

    def __init__(self, source: Source, spec: DocumentSpec, duplicates: np.ndarray | None, scratch: Path) -> None:
        self.counts = Counts()
        self.hashes = bytearray()
        self._source, self._spec, self._duplicates, self._scratch = source, spec, duplicates, scratch
        self._tokenizer = _tokenizer(spec.tokenizer, spec.backend)

    def read(self, extents: Iterable[Extent]) -> Iterator[TokenisedDocument]:
        """Yields the documents that are kept, each with at least one token."""
        before = self._tokenizer.num_fallbacks
        number = 0
        for extent in extents:
            dropped = self.counts.dropped[extent.file.name]
            for raw in read_documents(extent, self._source, dropped):
                number += 1
                if self._duplicates is not None and self._duplicates[number - 1]:
                    dropped["duplicate"] += 1
                    continue
                try:
                    document = self._tokenise(raw)
                except InvalidDocument as error:
                    dropped[error.reason] += 1
                    continue
                self.counts.documents += 1
                if isinstance(raw.content, Conversation):
                    self._count_ignored(extent.file.name, raw.content)
                yield document
        self.counts.num_fallbacks += self._tokenizer.num_fallbacks - before

    def _tokenise(self, raw: RawDocument) -> TokenisedDocument:
        if isinstance(raw.content, Conversation):
            self.hashes += _hash_conversation(raw.content)
            ids, mask, num_bytes = self._encode_conversation(raw.content)
        else:
            mask = None
            ids, num_bytes = self._encode_text(raw)
        if len(ids) < self._spec.min_tokens:
            raise InvalidDocument("below_min_doc_tokens")
        if self._spec.max_tokens is not None and len(ids) > self._spec.max_tokens:
            raise InvalidDocument("above_max_doc_tokens")
        self.counts.text_bytes += num_bytes
        return TokenisedDocument(raw.id, {**raw.origin, "bytes": num_bytes}, ids, mask)

    def _count_ignored(self, file_name: str, conversation: Conversation) -> None:
        """Names are a stranger's: each as a terminal may show it, and no more of them than can be read."""
        counts = self.counts.ignored[file_name]
        unread = _conversation_encoder(self._spec.tokenizer).unread(conversation)
        for name in dict.fromkeys((*conversation.ignored, *unread)):
            shown = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in name[:MAX_FIELD_NAME])
            counts[shown if shown in counts or len(counts) < MAX_FIELDS else OTHER_FIELDS] += 1

    def _encode_conversation(self, conversation: Conversation) -> tuple[np.ndarray, np.ndarray, int]:
        encoder = _conversation_encoder(self._spec.tokenizer)
        ids, mask = encoder.encode(conversation)
        if len(ids) > self._spec.max_conversation_tokens:
            raise InvalidDocument("conversation_above_seq_len")
        return ids, mask, conversation.num_bytes

    def _encode_text(self, raw: RawDocument) -> tuple[np.ndarray, int]:
        """The ids, with what the tokenizer puts before and after a text, and the text's UTF-8 length."""
        prefix, suffix = (np.array(ids, np.uint32) for ids in (self._tokenizer.prefix, self._tokenizer.suffix))
        content_hash, num_bytes = ContentHash("text"), 0

        def counted() -> Iterator[str]:
            nonlocal num_bytes
            for chunk in _chunks(raw.content):
                content_hash.update(chunk)
                num_bytes += len(chunk.encode())
                yield chunk

        try:
            if isinstance(raw.content, str):
                (text,) = counted()
                ids = np.concatenate([prefix, self._tokenizer.encode(text), suffix])
            else:
                ids = _spool(self._tokenizer.encode_stream(counted()), prefix, suffix, self._scratch)
        except InvalidDocument:
            self.hashes += hash_unreadable(raw.id)
            raise
        self.hashes += content_hash.digest()
        if len(ids) == len(prefix) + len(suffix):
            raise InvalidDocument("no_tokens")
        return ids, num_bytes


def _spool(parts: Iterable[np.ndarray], prefix: np.ndarray, suffix: np.ndarray, scratch: Path) -> np.ndarray:
    """The parts as one array that lies on disk; its file has no name and is gone with the array."""
    with tempfile.TemporaryFile(dir=scratch) as file:
        file.write(prefix.tobytes())
        for part in parts:
            file.write(part.tobytes())
        file.write(suffix.tobytes())
        file.flush()
        return np.memmap(file, np.uint32, mode="r") if file.tell() else np.empty(0, np.uint32)


@lru_cache(maxsize=1)
def _tokenizer(spec: TokenizerSpec, backend: str) -> DocumentTokenizer:
    """Loaded once a process: a large vocabulary takes longer to load than a small unit to encode."""
    return DocumentTokenizer(spec, backend)


@lru_cache(maxsize=1)
def _conversation_encoder(spec: TokenizerSpec) -> ConversationEncoder:
    return ConversationEncoder(spec)
