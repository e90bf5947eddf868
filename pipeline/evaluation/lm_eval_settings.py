"""Looks at values that lm-eval's flags and the YAML file of --config give, which lm-eval takes as they are."""

import json
import math
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from lm_eval.config.evaluate_config import DICT_KEYS, EvaluatorConfig

from pipeline.errors import UserError

_NAMES = {str: "a text", bool: "true or false", int: "a whole number", float: "a number", list: "a list", dict: "keys"}
_ALSO: dict[str, tuple[type, ...]] = {  # what lm-eval takes beside what it declares
    **dict.fromkeys(DICT_KEYS, (str,)),
    **dict.fromkeys(("model_args", "gen_kwargs", "metadata"), (str, types.NoneType)),
    "batch_size": (str,),
    "include_path": (list,),
}


def check_file(path: str) -> dict[str, Any]:
    """Reads the YAML file of --config.

    Raises:
        UserError: it is none, has an unknown key, or a value of another kind than its flag takes.
    """
    try:
        settings = EvaluatorConfig.load_yaml_config(path)
    except (OSError, TypeError, ValueError) as error:
        raise UserError(f"--config {path}: {' '.join(str(error).split())}") from error
    hints = get_type_hints(EvaluatorConfig)
    for key, value in settings.items():
        if key not in hints:
            raise UserError(f"--config {path}: unknown key {key}; known: {', '.join(hints)}")
        kinds = [*_kinds(hints[key]), *_ALSO.get(key, ())]
        if not any(_is_a(value, kind) for kind in kinds):
            expected = " or ".join(_NAMES[kind] for kind in kinds if kind in _NAMES)
            raise UserError(f"--config {path}: {key}: {json.dumps(value, default=str)} must be {expected}")
    tasks = settings.get("tasks", [])
    if isinstance(tasks, list) and not all(isinstance(name, str) for name in tasks):
        raise UserError(f"--config {path}: tasks: {json.dumps(tasks, default=str)} must be names")
    return settings


def check_numbers(config: EvaluatorConfig) -> None:
    """
    Raises:
        UserError: --limit or --num_fewshot is none that can be.
    """
    limit, num_fewshot = config.limit, config.num_fewshot
    if limit is not None and (not math.isfinite(limit) or limit <= 0 or (limit > 1 and limit != int(limit))):
        raise UserError(f"--limit {limit:g}: must be > 0, a number of examples or a share of them below 1")
    if num_fewshot is not None and num_fewshot < 0:
        raise UserError(f"--num_fewshot {num_fewshot}: must be >= 0")


def read_samples(given: str | Mapping[str, Any] | None) -> dict[str, list[int]] | None:
    """--samples: JSON, a file with it, or what it says, with numbers in order: lm-eval counts on that.

    Raises:
        UserError: it is none, or gives a task no numbers of examples.
    """
    form = '{"TASK": [0, 4]}, numbers of examples from 0'
    if given is None:
        return None
    samples = given
    if isinstance(given, str):
        try:
            samples = json.loads(given if given.lstrip().startswith("{") else Path(given).read_text())
        except OSError as error:
            raise UserError(f"--samples {given}: no such file ({error.strerror}); give one, or {form}") from error
        except ValueError as error:
            raise UserError(f"--samples {given}: not JSON ({error}); it must say {form}") from error
    if not isinstance(samples, Mapping) or not samples:
        raise UserError(f"--samples {json.dumps(samples)}: must be {form}")
    for task, numbers in samples.items():
        if not isinstance(numbers, list) or not numbers or not all(type(n) is int and n >= 0 for n in numbers):
            raise UserError(f"--samples {task}: {json.dumps(numbers)} must be {form}")
    return {task: sorted(set(numbers)) for task, numbers in samples.items()}


def _kinds(hint: Any) -> list[type]:
    options = get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    return [get_origin(option) or option for option in options]


def _is_a(value: Any, kind: type) -> bool:
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, (int, float) if kind is float else kind)
