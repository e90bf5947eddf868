"""From a dataclass to a command line: defaults < YAML file (--config) < flags, strict keys, one-line errors."""

import json
import sys
from argparse import ArgumentError
from dataclasses import asdict
from itertools import takewhile
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from jsonargparse import ArgumentParser, set_parsing_settings

from pipeline.errors import UserError

Config = TypeVar("Config")


class ConfigError(UserError):
    """A setting that is unknown, of the wrong type, out of range or in conflict with another."""


def require(condition: bool, message: str) -> None:
    """Raises ConfigError(message) unless `condition`."""
    if not condition:
        raise ConfigError(message)


def _complete_values(cls: type, argv: list[str]) -> list[str]:
    """Turns `--inputs a b` into the one value `["a", "b"]`, and a bare `--chat` into `--chat true`."""
    hints = {f"--{name}": hint for name, hint in get_type_hints(cls).items()}
    joined: list[str] = []
    position = 0
    while position < len(argv):
        flag = argv[position]
        position += 1
        joined.append(flag)
        if hints.get(flag) is bool and (position == len(argv) or argv[position].startswith("--")):
            joined.append("true")
        if hints.get(flag) == list[str]:
            values = list(takewhile(lambda value: not value.startswith("--"), argv[position:]))
            position += len(values)
            plain = len(values) == 1 and values[0].startswith("[")
            joined += values if plain else [json.dumps(values)]
    return joined


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
        raise ConfigError(" ".join(str(error).split())) from error
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
