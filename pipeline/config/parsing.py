"""From a dataclass to a command line: defaults < YAML file (--config) < flags, strict keys, one-line errors."""

import json
import re
import sys
from argparse import ArgumentError
from dataclasses import asdict, is_dataclass
from itertools import takewhile
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from jsonargparse import ArgumentParser, set_parsing_settings

from pipeline.errors import UserError

Config = TypeVar("Config")


class ConfigError(UserError):
    """A setting that is unknown, of the wrong type, out of range or in conflict with another."""


def require(condition: bool, message: str) -> None:
    """Raises ConfigError(message) unless `condition`."""
    if not condition:
        raise ConfigError(message)


def _hints(cls: type, prefix: str = "--") -> dict[str, Any]:
    """Flag -> type, of the fields and those of the trees in them."""
    found: dict[str, Any] = {}
    for name, hint in get_type_hints(cls).items():
        found |= _hints(hint, f"{prefix}{name}.") if is_dataclass(hint) else {f"{prefix}{name}": hint}
    return found


def _item_type(hint: Any) -> Any:
    """T of list[T] and of list[T] | None; None for anything else."""
    choices = [choice for choice in get_args(hint) if choice is not type(None)]
    hint = choices[0] if isinstance(hint, UnionType) and len(choices) == 1 else hint
    return get_args(hint)[0] if get_origin(hint) is list else None


def _complete_values(cls: type, argv: list[str]) -> list[str]:
    """Turns `--inputs a b` into the one value `["a", "b"]`, and a bare `--chat` into `--chat true`."""
    hints = _hints(cls)
    joined: list[str] = []
    position = 0
    while position < len(argv):
        flag = argv[position]
        position += 1
        joined.append(flag)
        if hints.get(flag) is bool and (position == len(argv) or argv[position].startswith("--")):
            joined.append("true")
        item = _item_type(hints.get(flag))
        if item is not None:
            values = list(takewhile(lambda value: not value.startswith("--"), argv[position:]))
            position += len(values)
            plain = len(values) == 1 and values[0].startswith("[")
            listed = f"[{', '.join(values)}]" if item in (int, float) else json.dumps(values)
            joined += values if plain else [listed]
    return joined


def _reword(message: str) -> str:
    """One line; what a flag may be, as its help says it."""
    message = " ".join(message.split())
    choice = re.fullmatch(r'Parser key "(.+?)": Expected a typing\.Literal\[(.*)\]\. Got value: (.*)', message)
    return message if choice is None else f"--{choice[1]}: expected one of {choice[2]}, found {choice[3]}"


def parse_cli(cls: type[Config], argv: list[str] | None = None) -> Config:
    """Builds a `cls` from its defaults, then --config FILE, then flags (later wins).

    Raises:
        ConfigError: one line that names the flag or key.
        SystemExit: after --help.
    """
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(description=(cls.__doc__ or "").strip(), exit_on_error=False, allow_abbrev=False)
    parser.add_argument("--config", action="config", help="YAML file with any of the settings below.")
    parser.add_class_arguments(cls, fail_untyped=True)
    try:
        parsed = parser.parse_args(_complete_values(cls, sys.argv[1:] if argv is None else argv))
    except (ArgumentError, TypeError, ValueError, KeyError) as error:
        raise ConfigError(_reword(str(error))) from error
    parsed.pop("config", None)
    return cls(**parser.instantiate_classes(parsed).as_dict())


def to_plain(config: Any) -> Any:
    """The tree as plain YAML and JSON types, for config.yaml."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: plain(v) for k, v in value.items()}
        if isinstance(value, (list, tuple)):
            return [plain(v) for v in value]
        return str(value) if isinstance(value, Path) else value

    return plain(asdict(config))
