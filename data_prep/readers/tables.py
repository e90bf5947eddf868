"""Rows of parquet and Arrow files (stream and file format): a few columns, from one row group or batch to another."""

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem

from data_prep.inputs import InputFile, open_file_system
from data_prep.readers.stored import open_stored
from data_prep.sources import Source
from pipeline.data.shard_format import DataError

BATCH_ROWS = 64
ARROW_FILE_MAGIC = b"ARROW1"


def describe_parts(file: InputFile, source: Source) -> list[tuple[int, int]]:
    """(rows, bytes) of each row group or record batch, after a check of the columns.

    Raises:
        DataError: a column that the source needs is not there or of another type.
    """
    if file.format == "parquet":
        with open_stored(file) as stream:
            parquet = pq.ParquetFile(stream)
            _check_columns(file, parquet.schema_arrow, source)
            groups = [parquet.metadata.row_group(n) for n in range(parquet.num_row_groups)]
            return [(g.num_rows, sum(g.column(n).total_compressed_size for n in range(g.num_columns))) for g in groups]
    with _open_arrow(file) as reader:
        _check_columns(file, reader.schema, source)
        return [(batch.num_rows, batch.nbytes) for batch in _batches(reader, 0, None)]


def read_rows(
    file: InputFile, start: int, end: int | None, first_row: int, columns: list[str], dropped: Counter[str]
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields (row, its columns) of row groups or record batches `start` to `end` (None: to the last).

    Drops: invalid_utf8.
    """
    read = _read_parquet if file.format == "parquet" else _read_arrow
    row = first_row
    for batch in read(file, start, end, columns):
        for number in range(batch.num_rows):
            try:
                values = {name: batch.column(name)[number].as_py() for name in columns}
            except UnicodeDecodeError:
                dropped["invalid_utf8"] += 1
            else:
                yield row, values
            row += 1


def columns_of(source: Source) -> list[str]:
    """The columns that the source reads."""
    if source.conversations is None:
        return [source.text_field]
    settings = source.conversations
    names = (settings.messages_field, settings.answers_field, settings.document_field)
    return list(dict.fromkeys(name for name in names if name is not None))


def _read_parquet(file: InputFile, start: int, end: int | None, columns: list[str]) -> Iterator[pa.RecordBatch]:
    with open_stored(file) as stream:
        parquet = pq.ParquetFile(stream)
        groups = list(range(start, parquet.num_row_groups if end is None else end))
        yield from parquet.iter_batches(BATCH_ROWS, row_groups=groups, columns=columns)


def _read_arrow(file: InputFile, start: int, end: int | None, columns: list[str]) -> Iterator[pa.RecordBatch]:
    with _open_arrow(file) as reader:
        for batch in _batches(reader, start, end):
            for name in columns:
                _check_offsets(batch.column(name))
            yield batch


def _check_offsets(column: pa.Array) -> None:
    """Arrow trusts a file's offsets: a damaged one would be read beyond its end. Bad text is found by row."""
    try:
        column.validate(full=True)
    except pa.ArrowInvalid as error:
        if "UTF8" not in str(error):
            raise


@contextmanager
def _open_arrow(file: InputFile) -> Iterator[pa.RecordBatchReader | pa.RecordBatchFileReader]:
    """A reader of either Arrow format; a local file is mapped, so that batches that are passed over are not read."""
    fs, path = open_file_system(file.url)
    with pa.memory_map(path) if isinstance(fs, LocalFileSystem) else fs.open(path, "rb") as stream:
        magic = stream.read(len(ARROW_FILE_MAGIC))
        stream.seek(0)
        with pa.ipc.open_file(stream) if magic == ARROW_FILE_MAGIC else pa.ipc.open_stream(stream) as reader:
            yield reader


def _batches(
    reader: pa.RecordBatchReader | pa.RecordBatchFileReader, start: int, end: int | None
) -> Iterable[pa.RecordBatch]:
    if isinstance(reader, pa.RecordBatchFileReader):
        last = reader.num_record_batches if end is None else end
        return (reader.get_batch(number) for number in range(start, last))
    return (batch for number, batch in zip(_counted(end), reader, strict=False) if number >= start)


def _counted(end: int | None) -> Iterable[int]:
    return itertools.count() if end is None else range(end)


def _check_columns(file: InputFile, schema: pa.Schema, source: Source) -> None:
    if source.conversations is None:
        _check_column(file, schema, "--text_field", source.text_field, "strings", _is_text)
        return
    settings = source.conversations
    _check_column(file, schema, "messages_field", settings.messages_field, "lists of messages", _is_messages)
    if settings.document_field is not None:
        _check_column(file, schema, "document_field", settings.document_field, "strings", _is_text)
    if settings.answers_field is not None:
        _check_column(file, schema, "answers_field", settings.answers_field, "(lists of) strings", _is_answers)


def _check_column(
    file: InputFile, schema: pa.Schema, setting: str, name: str, wanted: str, fits: Callable[[pa.DataType], bool]
) -> None:
    if name not in schema.names:
        raise DataError(f"{file.url} has no column {name!r} ({setting}); its columns: {', '.join(schema.names)}")
    number = schema.names.count(name)
    if number > 1:
        raise DataError(f"{file.url} has {number} columns named {name!r} ({setting}); rename all but one")
    kind = schema.field(name).type
    if not fits(kind):
        raise DataError(f"{file.url}: column {name!r} ({setting}) holds {kind}, not {wanted}")


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind)


def _is_messages(kind: pa.DataType) -> bool:
    return _is_list(kind) and pa.types.is_struct(kind.value_type)


def _is_answers(kind: pa.DataType) -> bool:
    return _is_text(kind) or (_is_list(kind) and _is_text(kind.value_type))
