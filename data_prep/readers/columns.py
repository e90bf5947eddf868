"""The columns (of tables) and fields (of JSON rows) that a source reads, and what they must hold."""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice

import pyarrow as pa

from data_prep.readers.messages import ROW_FIELDS
from data_prep.sources import Source
from pipeline.data.shard_format import DataError

JSON_TYPES = {dict: "an object", list: "a list", str: "text", bool: "true or false"}


@dataclass(frozen=True)
class Column:
    """A column or field `name`, which `setting` names.

    Attributes:
        wanted: what it must hold, in words.
        fits: whether a column of the type may hold it.
        holds: whether a JSON value is such a thing; None: rows without it are in order.
    """

    name: str
    setting: str
    wanted: str
    fits: Callable[[pa.DataType], bool]
    holds: Callable[[object], bool] | None


def columns_of(source: Source) -> list[Column]:
    """The columns that the source reads, each once."""
    if source.conversations is None:
        return [Column(source.text_field, "--text_field", "strings", _is_text, _is_str)]
    settings = source.conversations
    wanted = "lists of messages with role and content"
    columns = [Column(settings.messages_field, "messages_field", wanted, _is_messages, _are_messages)]
    if settings.document_field is not None:
        columns.append(Column(settings.document_field, "document_field", "strings", _is_text, _is_str))
    if settings.answers_field is not None:
        columns.append(Column(settings.answers_field, "answers_field", "(lists of) strings", _is_answers, None))
    return columns


def names_of(source: Source) -> list[str]:
    """The names of the columns that the source reads, each once."""
    return list(dict.fromkeys(column.name for column in columns_of(source)))


def optional_names_of(source: Source) -> list[str]:
    """The columns that it reads where they are there: what may belong to a conversation beside its messages."""
    required = names_of(source)
    return [] if source.conversations is None else [name for name in ROW_FIELDS if name not in required]


def check_schema(where: str, schema: pa.Schema, source: Source) -> None:
    """Checks the columns of a table, which `where` names.

    Raises:
        DataError: one is missing, there twice or of another type.
    """
    for column in columns_of(source):
        check_names(where, schema.names, column)
        kind = schema.field(column.name).type
        if not column.fits(kind):
            raise DataError(f"{where}: column {column.name!r} ({column.setting}) holds {kind}, not {column.wanted}")
        if repeated := _repeated_field(kind):
            raise DataError(
                f"{where}: column {column.name!r} ({column.setting}) holds {kind}, where {repeated!r} is there twice"
            )


def check_names(where: str, names: list[str], column: Column) -> None:
    """Checks that a table with columns of these names has the column once.

    Raises:
        DataError: it is missing, or there twice.
    """
    number = names.count(column.name)
    if number == 0:
        raise DataError(f"{where} has no column {column.name!r} ({column.setting}); its columns: {', '.join(names)}")
    if number > 1:
        raise DataError(f"{where} has {number} columns named {column.name!r} ({column.setting}); rename all but one")


def holds_json(kind: pa.DataType) -> bool:
    """Whether values of the type are, or have in them, text that spells JSON: what `datasets` infers as Json()."""
    if pa.types.is_map(kind):  # pairs, whose values `datasets` never writes as JSON
        return False
    return isinstance(kind, pa.JsonType) or any(holds_json(kind.field(n).type) for n in range(kind.num_fields))


def check_rows(where: str, rows: Iterable[tuple[int, object]], source: Source, dropped: Counter[str]) -> None:
    """Checks that each field is, as wanted, in at least one of the rows; reads no further than it must.

    Args:
        rows: numbers and JSON values; rows that cannot be read count themselves in `dropped`.

    Raises:
        DataError: there are rows, and none has the field.
    """
    missing = [column for column in columns_of(source) if column.holds is not None]
    found: dict[str, list[object]] = {column.name: [] for column in missing}
    first = None
    for _, row in rows:
        first = row if first is None else first
        values = row if isinstance(row, dict) else {}
        missing = [column for column in missing if not column.holds(values.get(column.name))]
        if not missing:
            return
        for column in missing:
            if values.get(column.name) is not None and not found[column.name]:
                found[column.name].append(values[column.name])
    if first is None:
        if set(dropped) == {"repeated_key"}:
            raise DataError(f"{where}: each of its rows has a key twice; rename or remove one of the two")
        return
    column = missing[0]
    if found[column.name]:
        kind = JSON_TYPES.get(type(found[column.name][0]), "a number")
        raise DataError(
            f"{where}: in none of its rows the field {column.name!r} ({column.setting}) holds {column.wanted}; "
            f"found {kind}"
        )
    fields = ", ".join(islice(first, 20)) if isinstance(first, dict) else "none"
    raise DataError(
        f"{where}: none of its rows has the field {column.name!r}; set {column.setting} (fields of the first: {fields})"
        " or --exclude the file"
    )


def _repeated_field(kind: pa.DataType) -> str | None:
    """The name of a field that a struct within the type has twice."""
    parts = [kind.field(number) for number in range(kind.num_fields)]
    names = [part.name for part in parts] if pa.types.is_struct(kind) else []
    here = (name for name in names if names.count(name) > 1)
    return next(here, None) or next(filter(None, (_repeated_field(part.type) for part in parts)), None)


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    is_string = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    return is_string or isinstance(kind, pa.JsonType)


def _is_list(kind: pa.DataType) -> bool:
    return any(
        is_kind(kind)
        for is_kind in (
            pa.types.is_list,
            pa.types.is_large_list,
            pa.types.is_fixed_size_list,
            pa.types.is_list_view,
            pa.types.is_large_list_view,
        )
    )


def _is_messages(kind: pa.DataType) -> bool:
    if not _is_list(kind):
        return isinstance(kind, pa.JsonType)
    message = kind.value_type
    if pa.types.is_struct(message):
        fields = {message.field(number).name: message.field(number).type for number in range(message.num_fields)}
        return "content" in fields and "role" in fields and _is_text(fields["role"])
    return isinstance(message, pa.JsonType)


def _is_answers(kind: pa.DataType) -> bool:
    return _is_text(kind) or (_is_list(kind) and _is_text(kind.value_type))


def _is_str(value: object) -> bool:
    return isinstance(value, str)


def _are_messages(value: object) -> bool:
    return isinstance(value, list) and any(
        isinstance(item, dict) and isinstance(item.get("role"), str) and "content" in item for item in value
    )
