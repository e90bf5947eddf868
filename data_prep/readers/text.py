"""A plain-text file is one document; a long one is handed on in chunks, so that memory does not grow with it."""

import codecs
from collections.abc import Iterable, Iterator
from itertools import chain

from data_prep.inputs import InputFile
from data_prep.readers.invalid import InvalidDocument
from data_prep.readers.stored import read_chunks, readable

STREAMED_BYTES = 4 << 20
ENCODING = "utf-8-sig"  # without the byte order mark


def read_text(file: InputFile) -> str | Iterator[str]:
    """The text; of one longer than STREAMED_BYTES an iterator of chunks, which raises what is said below.

    Raises:
        InvalidDocument: invalid_utf8; from the iterator also nul_bytes, and empty at its end.
    """
    chunks = read_chunks(file)
    head: list[bytes] = []
    size = 0
    for chunk in chunks:
        head.append(chunk)
        size += len(chunk)
        if size > STREAMED_BYTES:
            return _decode(file, chain(head, chunks))
    try:
        return b"".join(head).decode(ENCODING)
    except UnicodeDecodeError as error:
        raise InvalidDocument("invalid_utf8") from error


def _decode(file: InputFile, chunks: Iterable[bytes]) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder(ENCODING)()
    is_blank = True
    with readable(file):
        try:
            for chunk in chunks:
                text = decoder.decode(chunk)
                if "\0" in text:
                    raise InvalidDocument("nul_bytes")
                is_blank = is_blank and (not text or text.isspace())
                yield text
            decoder.decode(b"", final=True)
        except UnicodeDecodeError as error:
            raise InvalidDocument("invalid_utf8") from error
    if is_blank:
        raise InvalidDocument("empty")
