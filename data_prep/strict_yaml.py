"""YAML into dataclasses, strictly: unknown, missing and repeated keys and wrong types are refused in one line."""

from dataclasses import MISSING, fields, is_dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

import yaml

from pipeline.data.shard_format import DataError

Settings = TypeVar("Settings")
TYPE_NAMES = {
    str: "text",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    list[str]: "a list of text",
}

# PyYAML lets through what int(), date() and its own conversions make of a value such as 2024-13-45 or `!!int abc`.
UNREADABLE = (OSError, ValueError, LookupError, TypeError, AttributeError, yaml.YAMLError, RecursionError)


def load_yaml(path: Path, where: str) -> object:
    """The file's plain values.

    Args:
        where: begins the error message: flag and file.

    Raises:
        DataError: no such file, not YAML, or a key given twice.
    """
    if path.exists() and not path.is_file():  # to open a FIFO would wait for ever
        raise DataError(f"{where} is not a regular file")
    try:
        return yaml.load(path.read_text(encoding="utf-8"), _UniqueKeys)
    except UNREADABLE as error:
        raise DataError(f"{where} cannot be read as YAML ({' '.join(str(error).split())})") from error


def build_strictly(cls: type[Settings], given: object, where: str) -> Settings:
    """An instance of a dataclass, whose fields may be dataclasses too, from plain values.

    Raises:
        DataError: unknown or missing key, or a value of the wrong type; begins with `where`.
    """
    types = get_type_hints(cls)
    hints = {setting.name: types[setting.name] for setting in fields(cls) if setting.init}
    if not isinstance(given, dict):
        raise DataError(f"{where}: expected keys of {', '.join(hints)}, found {given!r}")
    for key in given:
        if key not in hints:
            near = get_close_matches(str(key), hints, 1)
            known = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(hints)}"
            raise DataError(f"{where}: unknown key {key!r}; {known}")
    for setting in fields(cls):
        if setting.default is MISSING and setting.default_factory is MISSING and setting.name not in given:
            raise DataError(f"{where}: {setting.name!r} is missing")
    return cls(**{key: _value(hints[key], value, f"{where}: {key}") for key, value in given.items()})


def _value(hint: Any, value: object, where: str) -> Any:
    kinds = [kind for kind in get_args(hint) if kind is not type(None)] if type(None) in get_args(hint) else [hint]
    (kind,) = kinds
    if value is None and kind is not hint:
        return None
    if is_dataclass(kind):
        return build_strictly(kind, value, where)
    if kind is float and type(value) is int:
        return _to_float(value, where)
    if kind == list[str]:
        fits = isinstance(value, list) and all(isinstance(item, str) for item in value)
        if fits and not all(item.strip() for item in value):
            raise DataError(f"{where}: an entry is blank")
    else:
        fits = type(value) is kind
    if not fits:
        raise DataError(f"{where}: expected {TYPE_NAMES[kind]}, found {value!r}")
    return value


def _to_float(value: int, where: str) -> float:
    try:
        return float(value)
    except OverflowError as error:
        raise DataError(f"{where}: the number is too large") from error


class _UniqueKeys(yaml.SafeLoader):
    """Refuses a key that is given twice, of which YAML would take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        keys = [key.value for key, _ in node.value]
        if repeated := next((key for key in keys if keys.count(key) > 1), None):
            raise yaml.YAMLError(f"key {repeated!r} is given twice {node.start_mark}")
        return super().construct_mapping(node, deep)
