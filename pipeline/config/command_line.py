"""What stands on a command line: each flag with its value or values, text taken as it is.

jsonargparse reads every value as YAML first, so that `# Quick sort` or `null` would be nothing and `[1]` a list. Here a
flag whose type is text (str or Path, or a list of str) gives its text, and the others a value for jsonargparse.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import is_dataclass
from functools import cache, reduce
from itertools import takewhile
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from pipeline.errors import UserError
from pipeline.flags import looks_like_flag, suggestion


class ConfigError(UserError):
    """A setting that is unknown, of the wrong type, out of range or in conflict with another."""


def require(condition: bool, message: str) -> None:
    """Raises ConfigError(message) unless `condition`."""
    if not condition:
        raise ConfigError(message)


@cache
def list_settings(cls: type, prefix: str = "") -> dict[str, Any]:
    """Dotted name -> type, of the fields, the trees among them, and the fields of those."""
    found: dict[str, Any] = {}
    for name, hint in get_type_hints(cls).items():
        found[f"{prefix}{name}"] = hint
        if is_dataclass(hint):
            found |= list_settings(hint, f"{prefix}{name}.")
    return found


def without_none(hint: Any) -> Any:
    """T of T | None, and any other type as it is."""
    choices = [choice for choice in get_args(hint) if choice is not type(None)]
    return choices[0] if isinstance(hint, UnionType) and len(choices) == 1 else hint


def item_type(hint: Any) -> Any:
    """T of list[T] and of list[T] | None; None for anything else."""
    hint = without_none(hint)
    return get_args(hint)[0] if get_origin(hint) is list else None


def is_text(hint: Any) -> bool:
    """Whether a value on the command line is text, to be taken as it is."""
    return without_none(hint) in (str, Path) or item_type(hint) in (str, Path)


class CommandLine:
    """The flags of one command line.

    Attributes:
        arguments: for jsonargparse, in order: `--name=VALUE` with a VALUE that it reads, and a text, which it shall not
            read, as a file of settings in JSON.
        files: what --config names.
    """

    def __init__(self, cls: type, argv: list[str]) -> None:
        """Raises ConfigError for a flag that is unknown or lacks its value."""
        self._settings = list_settings(cls)
        self.arguments, self.files = list[str](), list[str]()
        self._lists: dict[str, list[str]] = {}
        for flag, values in self._split(argv):
            self._add(flag, values)

    def _split(self, argv: list[str]) -> Iterator[tuple[str, list[str]]]:
        position = 0
        while position < len(argv):
            flag, equals, value = argv[position].partition("=")
            if not looks_like_flag(flag) and flag != "-h":
                raise ConfigError(f"{argv[position]!r} belongs to no flag; quote a value that has spaces")
            position += 1
            hint = self._hint(flag)
            values = list(takewhile(lambda argument: not looks_like_flag(argument), argv[position:]))
            if equals:
                values = [value]
            elif item_type(hint) is None:
                values = values[:1]
            position += 0 if equals else len(values)
            yield flag, values

    def _hint(self, flag: str) -> Any:
        """The setting's type; of --config and --help None.

        Raises:
            ConfigError: no such flag.
        """
        if flag in ("-h", "--help", "--config"):
            return None
        name = flag[2:]
        # --train.mixture.books 0.7 sets one key of a mapping.
        parents = (name[: match.start()] for match in re.finditer(r"\.", name))
        mapping = next((p for p in parents if get_origin(without_none(self._settings.get(p))) is dict), None)
        if mapping is None and name not in self._settings:
            flags = [f"--{known}" for known in self._settings] + ["--config", "--help"]
            raise ConfigError(f"{flag}: no such flag{suggestion(flag, flags)}; see --help")
        return self._settings.get(name)

    def _add(self, flag: str, values: list[str]) -> None:
        hint = self._hint(flag)
        if item_type(hint) is not None and _is_whole(values) and not is_text(hint):
            self._lists.pop(flag, None)  # a whole list, in brackets, replaces what came before
        elif item_type(hint) is not None:
            # jsonargparse would take the last of a flag given twice
            values = self._lists[flag] = [*self._lists.get(flag, []), *values]
        if flag in ("-h", "--help"):
            self.arguments.append(flag)
        elif hint is bool and not values:
            self.arguments.append(f"{flag}=true")
        elif is_text(hint) and item_type(hint) is not None:
            self.arguments.append(as_file(flag[2:], values))
        elif not values and item_type(hint) is None:
            raise ConfigError(f"{flag}: a value is missing; one that begins with -- is given as {flag}=VALUE")
        elif is_text(hint):
            # An empty path would be the current folder: what an unset variable of a shell script gives.
            require(without_none(hint) is not Path or values[0] != "", f"{flag}: the path is empty")
            self.arguments.append(as_file(flag[2:], values[0]))
        else:
            self.files += values if flag == "--config" else []
            self.arguments.append(f"{flag}={values[0] if item_type(hint) is None else _join(values, hint)}")


def as_file(name: str, value: Any) -> str:
    """A flag that gives a setting as a file of settings would: `--config={"train": {"wandb": "text"}}`."""
    return f"--config={json.dumps(reduce(lambda inner, part: {part: inner}, reversed(name.split('.')), value))}"


def _is_whole(values: list[str]) -> bool:
    """Whether the one value is a list in YAML, or null."""
    return len(values) == 1 and (values[0].startswith("[") or values == ["null"])


def _join(values: list[str], hint: Any) -> str:
    """The YAML list of `1 2`, `1,2` and `[1, 2]`; null stays what it is."""
    if _is_whole(values):
        return values[0]
    items = [item.strip() for value in values for item in value.split(",") if item.strip()]
    return f"[{', '.join(items)}]" if item_type(hint) in (int, float) else json.dumps(items)
