"""Rows of parquet and Arrow files (stream and file format): a few columns, from one row group or batch to another."""

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem

from data_prep.inputs import InputFile, open_file_system
from data_prep.readers.columns import check_schema, holds_json, names_of, optional_names_of
from data_prep.readers.json_values import RepeatedKey, parse_json
from data_prep.readers.messages import IGNORED_ROW_FIELDS, without_nulls
from data_prep.readers.stored import open_stored
from data_prep.sources import Source

BATCH_ROWS = 64
ARROW_FILE_MAGIC = b"ARROW1"


def describe_parts(file: InputFile, source: Source) -> tuple[list[tuple[int, int]], bool]:
    """(rows, bytes) of each row group or record batch, after a check of the columns; and whether one holds JSON, of
    which the type says nothing.

    Raises:
        DataError: a column that the source needs is not there or of another type.
    """
    if file.format == "parquet":
        with open_stored(file) as stream:
            parquet = pq.ParquetFile(stream)
            check_schema(file.url, parquet.schema_arrow, source)
            groups = [parquet.metadata.row_group(n) for n in range(parquet.num_row_groups)]
            sizes = [sum(g.column(n).total_compressed_size for n in range(g.num_columns)) for g in groups]
            parts = [(g.num_rows, size) for g, size in zip(groups, sizes, strict=True)]
            return parts, _has_json(parquet.schema_arrow, source)
    with _open_arrow(file) as reader:
        check_schema(file.url, reader.schema, source)
        parts = [(batch.num_rows, batch.nbytes) for batch in _batches(reader, 0, None)]
        return parts, _has_json(reader.schema, source)


def _has_json(schema: pa.Schema, source: Source) -> bool:
    return any(holds_json(schema.field(name).type) for name in names_of(source))


def read_rows(
    file: InputFile, start: int, end: int | None, first_row: int, source: Source, dropped: Counter[str]
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields (row, the columns that the source reads) of row groups or record batches `start` to `end` (None: to the
    last). What `datasets` stores as JSON is parsed. Of columns beside the required ones, True stands for a value of a
    form that is not read.

    Drops, for a required column: invalid_utf8, value_out_of_range, malformed_json, repeated_key.

    Raises:
        DataError: a column that the source needs is not there or of another type.
    """
    read = _read_parquet if file.format == "parquet" else _read_arrow
    required, optional = names_of(source), optional_names_of(source)
    row = first_row
    for batch in read(file, start, end, source):
        columns = [(name, batch.column(name)) for name in required]
        present = [(name, batch.column(name)) for name in optional if batch.schema.names.count(name) == 1]
        for number in range(batch.num_rows):
            try:
                values = {name: _value(column[number].as_py(), column.type) for name, column in columns}
                values |= {name: _beside(name, column[number]) for name, column in present}
            except UnicodeDecodeError:
                dropped["invalid_utf8"] += 1
            except OverflowError:  # a time that Python cannot hold
                dropped["value_out_of_range"] += 1
            except RepeatedKey:
                dropped["repeated_key"] += 1
            except (ValueError, RecursionError) as error:
                if isinstance(error, pa.ArrowException):
                    raise
                dropped["malformed_json"] += 1
            else:
                yield row, values
            row += 1


def _beside(name: str, scalar: pa.Scalar) -> Any:
    """The value of a column that is not required; it may be anything, and must not cost the row."""
    if name in IGNORED_ROW_FIELDS and not holds_json(scalar.type):  # only whether it is there counts
        return scalar.is_valid or None
    try:
        return without_nulls(_value(scalar.as_py(), scalar.type))
    except (ValueError, OverflowError, RecursionError, RepeatedKey) as error:
        if isinstance(error, pa.ArrowException):
            raise
        return True


def _value(value: Any, kind: pa.DataType) -> Any:
    """The value, with the JSON in it parsed."""
    if value is None or not holds_json(kind):
        return value
    if isinstance(kind, pa.JsonType):
        return parse_json(value)
    if isinstance(value, dict):
        return {name: _value(part, kind.field(name).type) for name, part in value.items()}
    return [_value(part, kind.value_type) for part in value]


def _read_parquet(file: InputFile, start: int, end: int | None, source: Source) -> Iterator[pa.RecordBatch]:
    with open_stored(file) as stream:
        parquet = pq.ParquetFile(stream)
        check_schema(file.url, parquet.schema_arrow, source)
        groups = list(range(start, parquet.num_row_groups if end is None else end))
        columns = [*names_of(source), *optional_names_of(source)]
        yield from parquet.iter_batches(BATCH_ROWS, row_groups=groups, columns=columns)


def _read_arrow(file: InputFile, start: int, end: int | None, source: Source) -> Iterator[pa.RecordBatch]:
    with _open_arrow(file) as reader:
        check_schema(file.url, reader.schema, source)
        for batch in _batches(reader, start, end):
            for name in {*names_of(source), *optional_names_of(source)} & set(batch.schema.names):
                if batch.schema.names.count(name) == 1:
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
