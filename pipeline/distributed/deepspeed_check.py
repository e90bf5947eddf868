"""Shows a DeepSpeed JSON to the installed DeepSpeed, which trains without a key that it does not know.

What is known is not written down here: it is what DeepSpeed's own reader looks up in the JSON, section by section.
"""

import logging
from collections.abc import Iterator, KeysView
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from deepspeed.runtime.config import DeepSpeedConfig, DeepSpeedConfigError
from deepspeed.utils import logger

from pipeline.errors import UserError
from pipeline.flags import find_nearest, suggestion

_REJECTIONS = (DeepSpeedConfigError, ValueError, TypeError, AssertionError, NotImplementedError)


class _Section(dict[str, Any]):
    """Notes which keys it was asked for; whoever takes all of them, as pydantic's sections do, checks them itself."""

    def __init__(self, content: dict[str, Any]) -> None:
        super().__init__({k: _Section(v) if isinstance(v, dict) else v for k, v in content.items()})
        self.asked_for: set[str] = set()

    def __getitem__(self, key: str) -> Any:
        self.asked_for.add(key)
        return super().__getitem__(key)

    def __contains__(self, key: object) -> bool:
        self.asked_for.add(str(key))
        return super().__contains__(key)

    def get(self, key: str, default: Any = None) -> Any:
        self.asked_for.add(key)
        return super().get(key, default)

    def keys(self) -> KeysView[str]:
        return KeysView(self)

    def __iter__(self) -> Iterator[str]:  # also makes ** go through keys() and [], where a plain dict is copied at once
        return super().__iter__()


def check_deepspeed_config(path: Path, settings: dict[str, Any]) -> None:
    """Refuses what DeepSpeed would not understand.

    Args:
        path: of the JSON, for the message.
        settings: it, with batch and accumulation filled in.

    Raises:
        UserError: an unknown section or key, with the nearest known one; or what DeepSpeed says.
    """
    micro, steps = settings["train_micro_batch_size_per_gpu"], settings.get("gradient_accumulation_steps", 1)
    sizes = {"train_batch_size": micro * steps, "gradient_accumulation_steps": steps}  # as of one rank
    shown, level = _Section(settings | sizes), logger.level
    logger.setLevel(logging.ERROR)  # it will say all that again when it is read for the training
    try:
        with deepspeed_settings(f"--ds_config {path}"):
            DeepSpeedConfig(shown)
    except AttributeError as error:  # it looks for keys in a section that has none
        raise UserError(f"--ds_config {path}: a section that must be an object {{...}} is not ({error})") from error
    finally:
        logger.setLevel(level)
    for key, section in shown.items():
        if key not in shown.asked_for:
            raise UserError(
                f'--ds_config {path}: DeepSpeed knows no "{key}"{suggestion(key, shown.asked_for)} (it would train '
                f"without it)"
            )
        for inner in section if isinstance(section, _Section) else ():
            # Some keys are read only where others are set, so only what looks like a slip is refused.
            nearest = None if inner in section.asked_for else find_nearest(inner, section.asked_for)
            if nearest is not None:
                raise UserError(f'--ds_config {path}: "{key}" has "{inner}"; did you mean "{nearest}"?')


@contextmanager
def deepspeed_settings(origin: str = "--ds_config") -> Iterator[None]:
    """Around a call of DeepSpeed that takes the settings of `origin`.

    Raises:
        UserError: it does not take them; in one line what it says.
    """
    try:
        yield
    except _REJECTIONS as error:
        found = getattr(error, "errors", None)
        if callable(found):  # pydantic's
            said = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}, found {e['input']!r}" for e in found())
        else:
            said = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{origin}: DeepSpeed does not take it: {said[:400]}") from error
