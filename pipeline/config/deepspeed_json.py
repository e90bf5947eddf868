"""Reads what --ds_config names."""

import json
from pathlib import Path
from typing import Any

from pipeline.config.parsing import ConfigError, require


def read_deepspeed_json(path: Path) -> dict[str, Any]:
    """The user's JSON as it is.

    Raises:
        ConfigError: the file is missing or is no JSON object, or its ZeRO section none.
    """
    require(path.is_file(), f"--ds_config {path} does not exist; see ds_configs/")
    try:
        user = json.loads(path.read_text())
    except ValueError as error:
        raise ConfigError(f"--ds_config {path} is not JSON: {error}") from error
    require(isinstance(user, dict), f"--ds_config {path} must hold a JSON object, found {type(user).__name__}")
    zero = user.get("zero_optimization", {})
    require(isinstance(zero, dict), f'--ds_config {path}: "zero_optimization" must be an object, found {zero!r}')
    return user
