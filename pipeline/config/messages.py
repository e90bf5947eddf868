"""jsonargparse's errors in one line that names the flag or the key, what was found and what would work."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import is_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Literal, get_args, get_origin

from pipeline.flags import suggestion

_KINDS = {
    str: "text",
    Path: "a path",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    type(None): "null",
    Any: "anything",
}


def describe_type(hint: Any) -> str:
    """What a setting may be, in words."""
    if hint in _KINDS:
        return _KINDS[hint]
    if is_dataclass(hint):
        return "settings as name: value"
    if isinstance(hint, UnionType):
        return " or ".join(map(describe_type, get_args(hint)))
    origin, items = get_origin(hint), get_args(hint)
    if origin is Literal:
        return f"one of {', '.join(map(repr, items))}"
    if origin is tuple:
        return f"a list of {len(items)}: {', '.join(map(describe_type, items))}"
    if origin is dict:
        return f"a mapping of names to {describe_type(items[1])}"
    return describe_type(items[0]) if get_origin(items[0]) is Literal else f"a list, each {describe_type(items[0])}"


def reword(message: str, settings: Mapping[str, Any], files: Sequence[str]) -> str:
    """The message for the user.

    Args:
        message: jsonargparse's.
        settings: dotted name -> type, of every setting there is.
        files: those of --config.
    """
    message = " ".join(message.split())
    unknown = re.fullmatch(r"(?:Group '(.+)' does not accept option|Option) '(.+?)'(?: is not accepted)?", message)
    if unknown is not None:
        parts = ".".join(filter(None, unknown.groups())).split(".")
        names = [".".join(parts[:length]) for length in range(1, len(parts) + 1)]
        name = next(name for name in names if name not in settings)
        return f"{name}: no such setting{suggestion(name, settings)}; see --help"
    wrong = re.match(r'Parser key "(.+?)"', message)
    hint = None if wrong is None else settings.get(wrong[1])
    if hint is None:
        message = message.removeprefix('Parser key "config": ')
        return f"--config {' '.join(files)}: {message}" if files else message
    found = re.findall(r"(?:Given value|Got value): (.*)", message) or re.findall(r"expected .*, not (\w+)$", message)
    return f"--{wrong[1]}: expected {describe_type(hint)}" + (f", found {found[-1]}" if found else "")
