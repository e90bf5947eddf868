"""The documents of one extent: text, text in chunks, or messages."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from data_prep.readers import jsonl, tables
from data_prep.readers.extents import Extent
from data_prep.readers.invalid import InvalidDocument, check_text
from data_prep.readers.messages import Conversation, build_conversation
from data_prep.readers.stored import check_unchanged, readable
from data_prep.readers.text import read_text
from data_prep.sources import Source


@dataclass(frozen=True)
class RawDocument:
    """One document as it was read.

    Attributes:
        id: `{source}/{file's name}`, with `:{row}` (0-based) where a file holds many.
        origin: {"row"} where a file holds many, and {"bytes"}, its length in UTF-8, where `content` is a str.
        content: the text; for a plain-text file of more than 4 MiB an iterator of its chunks (about 1 MiB each),
            which raises InvalidDocument and DataError; for a source of conversations one of these.
    """

    id: str
    origin: dict
    content: str | Iterator[str] | Conversation


def read_documents(extent: Extent, source: Source, dropped: Counter[str]) -> Iterator[RawDocument]:
    """Yields the extent's usable documents in order and counts the others in `dropped` by reason.

    Reasons: invalid_utf8, nul_bytes, empty (or white space only), malformed_json, repeated_key, blank_line,
    missing_text_field (absent, null or not a string), and those of `build_conversation`. Text in chunks is the
    caller's to count.

    Raises:
        DataError: the file cannot be read to the extent's end, or is not the one that was inspected; the latter may
            show only after the last document.
    """
    file = extent.file
    document_id = f"{file.source}/{file.name}"
    with readable(file):
        check_unchanged(file, extent.version)
        if file.format == "text":
            rows = iter([(None, None)])
        elif file.format == "jsonl":
            rows = jsonl.read_rows(file, extent.start, extent.end, extent.first_row, dropped)
        else:
            rows = tables.read_rows(file, extent.start, extent.end, extent.first_row, source, dropped)
        for row, value in rows:
            try:
                content = read_text(file) if row is None else _content(value, source)
                origin = ({} if row is None else {"row": row}) | _measure(content)
            except InvalidDocument as error:
                dropped[error.reason] += 1
            else:
                yield RawDocument(document_id if row is None else f"{document_id}:{row}", origin, content)
        check_unchanged(file, extent.version)


def _content(row: Any, source: Source) -> str | Conversation:
    """What the row's fields make."""
    if source.conversations is not None:
        if not isinstance(row, dict):
            raise InvalidDocument("malformed_messages")
        return build_conversation(row, source.conversations)
    text = row.get(source.text_field) if isinstance(row, dict) else None
    if not isinstance(text, str):
        raise InvalidDocument("missing_text_field")
    return text


def _measure(content: str | Iterator[str] | Conversation) -> dict[str, int]:
    if not isinstance(content, str):
        return {}
    num_bytes = check_text(content)
    if not content.strip():
        raise InvalidDocument("empty")
    return {"bytes": num_bytes}
