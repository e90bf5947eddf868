"""--help of a launcher: whole sentences, in the terminal's width, each flag as it is typed."""

import argparse
import inspect
import shutil
import textwrap
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from jsonargparse import ArgumentParser, DefaultHelpFormatter

from pipeline.byte_counts import format_bytes
from pipeline.config.command_line import item_type, list_settings, without_none

_LONGEST_CHOICE = 60
_METAVARS = {str: "TEXT", Path: "PATH", int: "N", float: "X", bool: "true|false"}


class HelpText(DefaultHelpFormatter):
    """Says of each flag what it does, whether it is required, and its default where the text does not."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text = (action.help or "").strip()
        if not action.option_strings or action.nargs == 0 or action.default is argparse.SUPPRESS:
            return text
        if action.required:
            return f"{text} Required."
        if action.default is None or "Default:" in text:
            return text
        default = action.default
        if isinstance(default, bool):
            return f"{text} Default: {str(default).lower()}."
        items = default if isinstance(default, (list, tuple)) else [default]
        if action.dest.endswith("_bytes"):
            return f"{text} Default: {format_bytes(default)}."
        return f"{text} Default: {' '.join(map(str, items)) if default != {} and items else 'none'}."


def _metavar(hint: Any) -> str:
    inner = without_none(hint)
    item = item_type(inner)
    if item is not None:
        return f"{_metavar(item)} ..."
    if get_origin(inner) is Literal:
        names = f"{{{','.join(get_args(inner))}}}"
        return names if len(names) <= _LONGEST_CHOICE else "NAME"
    if get_origin(inner) is tuple:
        return f"[{', '.join(map(_metavar, get_args(inner)))}]"
    return "{NAME: VALUE, ...}" if get_origin(inner) is dict else _METAVARS.get(inner, "FILE")


def arrange_help(parser: ArgumentParser, cls: type) -> None:
    """Names the values of each flag, and puts the flags of each tree under what that tree is for."""
    settings = list_settings(cls)
    parser.description = _flow(cls)
    required = [f"--{action.dest} {_metavar(settings[action.dest])}" for action in parser._actions if action.required]
    usage = " ".join([parser.prog, *required, "[--config FILE]", "[SETTINGS]"])
    width = max(20, shutil.get_terminal_size().columns - len("usage: ") - 2)
    parser.usage = textwrap.fill(usage, width, subsequent_indent=" " * 8, break_long_words=False).replace("%", "%%")
    for action in parser._actions:
        # jsonargparse's `--inputs+` adds to a list; ours gives the list.
        action.option_strings = [option for option in action.option_strings if not option.endswith("+")]
        if action.dest in settings:
            action.metavar = _metavar(settings[action.dest])
            if action.metavar.startswith("NAME"):
                choices = get_args(item_type(settings[action.dest]) or without_none(settings[action.dest]))
                action.help = f"{action.help} One of {', '.join(choices)}."
        if is_dataclass(settings.get(action.dest)):
            action.help = "YAML file with the settings below."
    for name, group in parser.groups.items():
        if name not in settings:
            group.title = "settings"
            continue
        of_class, of_field = _flow(settings[name]), group.title
        group.title = f"settings of --{name}"
        group.description = of_class if of_class.startswith(of_field) else f"{of_class} {of_field}."


def _flow(cls: type) -> str:
    return " ".join((inspect.getdoc(cls) or "").split())
