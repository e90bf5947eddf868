"""From a dataclass to a command line: defaults, YAML files (--config) and flags, strict keys, one-line errors.

What stands later on the command line wins: so recipes can be laid over each other and over flags.
"""

import json
import sys
from argparse import ArgumentError
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml
from jsonargparse import ArgumentParser, get_loader, set_loader, set_parsing_settings

from pipeline.config.command_line import CommandLine, ConfigError, is_text, list_settings, require
from pipeline.config.help_text import HelpText, arrange_help
from pipeline.config.messages import describe_type, reword

Config = TypeVar("Config")


class _Text(str):
    """A string that has been read already: jsonargparse reads YAML in those of the type str itself."""


def _load(text: str, settings: Mapping[str, Any]) -> Any:
    """What a file, or a value on the command line, says in YAML; texts in it are not read another time."""

    def mark(value: Any, name: str = "") -> Any:
        if isinstance(value, dict):
            return {key: mark(item, f"{name}.{key}" if name else key) for key, item in value.items()}
        if isinstance(value, list):
            return [mark(item, name) for item in value]
        is_other = name in settings and not is_text(settings[name])
        return _Text(value) if isinstance(value, str) and not is_other else value

    try:
        # `CommandLine` writes texts as JSON: PyYAML refuses some characters, escaped or not.
        return mark(json.loads(text)) if text.startswith("{") else mark(get_loader("yaml")(text))
    except json.JSONDecodeError:
        return mark(get_loader("yaml")(text))


def _unmark(value: Any) -> Any:
    if isinstance(value, dict):
        return {_unmark(key): _unmark(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(map(_unmark, value))
    return str(value) if isinstance(value, _Text) else value


def parse_cli(cls: type[Config], argv: list[str] | None = None, prog: str | None = None) -> Config:
    """Builds a `cls` from its defaults, then --config FILE and flags in their order (later wins).

    Args:
        cls: the dataclass of the settings.
        argv: the command line. Default: the process's.
        prog: what --help calls the command. Default: the script's name.

    Raises:
        ConfigError: one line that names the flag or key.
        SystemExit: after --help.
    """
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    settings = list_settings(cls)
    set_loader("text", lambda text: _load(text, settings), (yaml.YAMLError,))
    parser = ArgumentParser(
        prog=prog,
        formatter_class=HelpText,
        exit_on_error=False,
        allow_abbrev=False,
        parser_mode="text",
        print_config=None,
    )
    parser.add_argument(
        "--config",
        action="config",
        metavar="FILE",
        help="YAML file with any of the settings below. Flags behind it win over the file, flags before it do not.",
    )
    parser.add_class_arguments(cls, fail_untyped=True)
    arrange_help(parser, cls)
    line = CommandLine(cls, sys.argv[1:] if argv is None else argv)
    try:
        parsed = parser.parse_args(line.arguments)
    except (ArgumentError, TypeError, ValueError, KeyError) as error:
        raise ConfigError(reword(str(error), settings, line.files)) from error
    parsed.pop("config", None)
    for name, hint in settings.items():
        if is_dataclass(hint):
            found = parsed.get(name)
            require(hasattr(found, "items"), f"--{name}: expected {describe_type(hint)}, found {found}")
    for name, value in list(parsed.items()):
        parsed[name] = _unmark(value)
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
