"""An experiment's stages: each one's command line, checked by the very parser that its launcher uses.

What a stage leaves out it takes from those before it: the data, the cache and the run that they write.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any, get_type_hints

from pipeline.config import (
    EvalConfig,
    PrepareConfig,
    SubmitConfig,
    TeacherCacheConfig,
    TrainRunConfig,
    parse_cli,
    require,
)
from pipeline.config.command_line import as_file, is_text, item_type
from pipeline.data.storage import is_url
from pipeline.flags import looks_like_flag
from pipeline.launching.findings import Findings

StageConfig = PrepareConfig | TeacherCacheConfig | TrainRunConfig | EvalConfig
CLASSES: dict[str, type[StageConfig]] = {
    "prepare": PrepareConfig,
    "cache": TeacherCacheConfig,
    "train": TrainRunConfig,
    "evaluate": EvalConfig,
}


@dataclass(frozen=True)
class Stage:
    """A stage's settings, and its launcher's command line, from which they were read."""

    name: str
    arguments: list[str]
    config: StageConfig


def split_command_line(argv: Sequence[str]) -> tuple[list[str], dict[str, list[str]]]:
    """Takes the settings of stages (--train.output RUN) out of a command line.

    Returns:
        The rest, and each stage's part as its launcher takes it (--output RUN).

    Raises:
        ConfigError: a stage's setting without a value.
    """
    rest, parts = list[str](), {name: list[str]() for name in CLASSES}
    position = 0
    while position < len(argv):
        flag, equals, value = argv[position].partition("=")
        stage, dot, key = flag.removeprefix("--").partition(".")
        position += 1
        if not (flag.startswith("--") and dot and stage in CLASSES):
            rest.append(argv[position - 1])
            continue
        if equals:
            parts[stage].append(f"--{key}={value}")
            continue
        values = list(takewhile(lambda text: not looks_like_flag(text), argv[position:]))
        require(bool(values), f"{flag}: a value is missing")
        parts[stage] += [f"--{key}", *values]
        position += len(values)
    return rest, parts


def build_stages(config: SubmitConfig, overrides: Mapping[str, list[str]], findings: Findings) -> dict[str, Stage]:
    """The stages that the experiment names and whose settings can be read, in order.

    Args:
        config: the experiment.
        overrides: settings of stages from the command line.
        findings: gets what is wrong with the others.
    """
    stages: dict[str, Stage] = {}
    for name, cls in CLASSES.items():
        section = getattr(config, name)
        if section is None and not overrides[name]:
            continue
        replaced = {flag[2:].partition("=")[0] for flag in overrides[name] if looks_like_flag(flag)}
        replaced.discard("config")  # of several files the later wins, key by key
        given = {key: value for key, value in (section or {}).items() if key not in replaced}  # lists would be added to
        recipe = [f"--config={file}"] if (file := given.pop("config", None)) else []
        links = _links(name, {stage: s.config for stage, s in stages.items()})
        arguments = [*_flags(cls, links), *recipe, *_flags(cls, given), *overrides[name]]
        with findings.of(name):
            stages[name] = Stage(name, arguments, parse_cli(cls, arguments))
    train = stages.get("train")
    if train is not None and config.site.data_cache is not None and not is_url(train.config.data):
        arguments = [*train.arguments, f"--data=file://{Path(train.config.data).absolute()}"]
        stages["train"] = Stage("train", arguments, parse_cli(TrainRunConfig, arguments))
    return stages


def _links(name: str, before: Mapping[str, StageConfig]) -> dict[str, Any]:
    """What a stage takes from those before it."""
    found: dict[str, Any] = {}
    prepare, cache, train = (before.get(stage) for stage in ("prepare", "cache", "train"))
    if name in ("cache", "train"):
        if isinstance(prepare, PrepareConfig):
            found |= {"model": prepare.tokenizer, "data": str(prepare.output)}
        if isinstance(cache, TeacherCacheConfig):
            found |= {"model": cache.model, "data": cache.data, "teacher_cache": str(cache.output)}
    if name == "evaluate" and isinstance(train, TrainRunConfig):
        found |= {"model": str(train.output / "adapter"), "run": str(train.output)}
    return found


def _flags(cls: type, settings: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """The settings as flags; what a flag cannot say, the null of a text among it, as one more file of settings.

    Raises:
        ConfigError: a setting that is text is something else.
    """
    hints = get_type_hints(cls)
    for key, value in settings.items():
        hint, flag = hints.get(key), f"--{prefix}{key}"
        items = value if isinstance(value, list) else [value]
        if is_dataclass(hint) and isinstance(value, dict):
            yield from _flags(hint, value, f"{prefix}{key}.")
        elif hint is None or not is_text(hint):
            yield f"{flag}={value if isinstance(value, str) else json.dumps(value)}"
        elif item_type(hint) is None and isinstance(value, str):
            yield f"{flag}={value}"
        elif item_type(hint) is not None and all(isinstance(i, str) and not looks_like_flag(i) for i in items):
            yield from [flag, *items]
        else:
            yield as_file(f"{prefix}{key}", value)
