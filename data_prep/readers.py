"""Reads documents from input files: text, JSONL (plain or compressed) and parquet.

Nothing is dropped silently: every document that cannot be used is counted under its reason. A file that
cannot be read to its end stops the run.
"""

import hashlib
import json
import lzma
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import fsspec
import pyarrow
import pyarrow.parquet
import zstandard

from data_prep.inputs import InputFile
from pipeline.data.shard_format import DataError

CHUNK_BYTES = 1 << 20
PARQUET_ROWS = 256
# Stored data that does not decompress or decode: each library has its own error.
UNREADABLE = (OSError, EOFError, zlib.error, lzma.LZMAError, zstandard.ZstdError, pyarrow.ArrowException)


@dataclass(frozen=True)
class RawDocument:
    """`id` is the file's name, with `:row` (0-based) where a file holds many; `origin` says where the text
    lies.
    """

    id: str
    origin: dict
    text: str


def fingerprint_input(file: InputFile, text_field: str) -> str:
    """sha256 (hex) of the stored file; finds out what makes the file unusable before the long work starts.

    Raises:
        DataError: unreadable, not of the format its name says, or a parquet file without the text column.
    """
    digest = hashlib.sha256()
    with _readable(file):
        with fsspec.open(file.url, "rb") as stream:
            while chunk := stream.read(CHUNK_BYTES):
                digest.update(chunk)
        if file.format == "parquet":
            with fsspec.open(file.url, "rb") as stream:
                _check_text_column(file, pyarrow.parquet.ParquetFile(stream).schema_arrow, text_field)
        else:
            next(_read_chunks(file), None)
    return digest.hexdigest()


def _check_text_column(file: InputFile, schema: pyarrow.Schema, text_field: str) -> None:
    if text_field not in schema.names:
        raise DataError(
            f"{file.url} has no column {text_field!r} (--text_field); its columns: {', '.join(schema.names)}"
        )
    kind = schema.field(text_field).type
    if not (pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind)):
        raise DataError(f"{file.url}: column {text_field!r} (--text_field) holds {kind}, not strings")


@contextmanager
def _readable(file: InputFile) -> Iterator[None]:
    """Turns the errors of file systems and decompressors into one line that names the file."""
    try:
        yield
    except UNREADABLE as error:
        raise DataError(f"input {file.url} cannot be read as {_description(file)}: {error}") from error


def _description(file: InputFile) -> str:
    return f"{file.compression}-compressed {file.format}" if file.compression else file.format


def _read_chunks(file: InputFile) -> Iterator[bytes]:
    """The file's decompressed bytes."""
    # zstandard's stream reader ends quietly at the end of the first frame, and at a truncation.
    own_zstd = file.compression == "zstd"
    with fsspec.open(file.url, "rb", compression=None if own_zstd else file.compression) as stream:
        stored = iter(lambda: stream.read(CHUNK_BYTES), b"")
        yield from _decompress_zstd(stored) if own_zstd else stored


def _decompress_zstd(stored: Iterable[bytes]) -> Iterator[bytes]:
    """Decompresses any number of frames.

    Raises:
        EOFError: the last frame is incomplete.
    """
    frame = None
    for chunk in stored:
        rest = chunk
        while rest:
            frame = frame or zstandard.ZstdDecompressor().decompressobj()
            yield frame.decompress(rest)
            rest = frame.unused_data if frame.eof else b""
            frame = None if frame.eof else frame
    if frame is not None:
        raise EOFError("the compressed data ends in the middle of a zstd frame")


def read_documents(file: InputFile, text_field: str, dropped: Counter[str]) -> Iterator[RawDocument]:
    """Yields the file's usable documents in order and counts the others in `dropped` by reason.

    Reasons: invalid_utf8, malformed_json, missing_text_field (absent, null or not a string), empty (or white
    space only).

    Raises:
        DataError: the file cannot be read to its end.
    """
    read = {"text": _read_text, "jsonl": _read_jsonl, "parquet": _read_parquet}[file.format]
    with _readable(file):
        for origin, text in read(file, text_field, dropped):
            try:
                num_bytes = len(text.encode())
            except UnicodeEncodeError:  # half of a surrogate pair, which JSON can spell
                dropped["invalid_utf8"] += 1
                continue
            if not text.strip():
                dropped["empty"] += 1
                continue
            row = f":{origin['row']}" if "row" in origin else ""
            yield RawDocument(file.name + row, {**origin, "bytes": num_bytes}, text)


def _read_text(file: InputFile, text_field: str, dropped: Counter[str]) -> Iterator[tuple[dict, str]]:
    try:
        yield {}, b"".join(_read_chunks(file)).decode("utf-8-sig")
    except UnicodeDecodeError:
        dropped["invalid_utf8"] += 1


def _read_jsonl(file: InputFile, text_field: str, dropped: Counter[str]) -> Iterator[tuple[dict, str]]:
    for row, line in enumerate(_split_lines(_read_chunks(file))):
        if not line.strip():
            continue
        try:
            content = json.loads(line.decode("utf-8-sig"))
        except UnicodeDecodeError:
            dropped["invalid_utf8"] += 1
        except (ValueError, RecursionError):
            dropped["malformed_json"] += 1
        else:
            text = content.get(text_field) if isinstance(content, dict) else None
            if isinstance(text, str):
                yield {"row": row}, text
            else:
                dropped["missing_text_field"] += 1


def _split_lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Lines without their newline; linear also where one line spans many chunks."""
    parts: list[bytes] = []
    for chunk in chunks:
        first, *others = chunk.split(b"\n")
        parts.append(first)
        if others:
            yield b"".join(parts)
            yield from others[:-1]
            parts = [others[-1]]
    yield b"".join(parts)


def _read_parquet(file: InputFile, text_field: str, dropped: Counter[str]) -> Iterator[tuple[dict, str]]:
    with fsspec.open(file.url, "rb") as stream:
        batches = pyarrow.parquet.ParquetFile(stream).iter_batches(PARQUET_ROWS, columns=[text_field])
        for row, value in enumerate(value for batch in batches for value in batch.column(0)):
            try:
                text = value.as_py()
            except UnicodeDecodeError:
                dropped["invalid_utf8"] += 1
            else:
                if text is None:
                    dropped["missing_text_field"] += 1
                else:
                    yield {"row": row}, text
