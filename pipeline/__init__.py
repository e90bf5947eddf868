"""Artificial Hippocampus Networks: constant-size long memory for open-weight LLMs.

`import pipeline` makes transformers' Auto classes know merged AHN folders, without importing torch or transformers
itself, as data preparation and a launcher's --help need neither: `AutoConfig.from_pretrained` (which every Auto class
calls) registers the AHN model of a folder's family when it meets one.
"""

import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

_AWAITED = "transformers.models.auto.configuration_auto"


class _OnImport(MetaPathFinder):
    """Finds nothing itself: has the real loader of `_AWAITED` call `_register_when_met` when it is done."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != _AWAITED:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        execute = spec.loader.exec_module

        def execute_and_prepare(module: ModuleType) -> None:
            execute(module)
            _register_when_met(module)

        spec.loader.exec_module = execute_and_prepare
        return spec


def _register_when_met(module: ModuleType) -> None:
    """Registering imports modeling files, which must not happen while transformers is half imported."""
    auto_config = module.AutoConfig
    original = auto_config.from_pretrained.__func__

    def from_pretrained(cls: type, pretrained_model_name_or_path: Any, **kwargs: Any) -> Any:
        settings, _ = module.PreTrainedConfig.get_config_dict(pretrained_model_name_or_path, **kwargs)
        if str(settings.get("model_type")).startswith("ahn_"):
            from pipeline.model.registration import register_ahn_model

            register_ahn_model(settings["model_type"])
        return original(cls, pretrained_model_name_or_path, **kwargs)

    from_pretrained.__doc__ = original.__doc__
    auto_config.from_pretrained = classmethod(from_pretrained)


if _AWAITED in sys.modules:
    _register_when_met(sys.modules[_AWAITED])
else:
    sys.meta_path.insert(0, _OnImport())
