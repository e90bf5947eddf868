"""Artificial Hippocampus Networks: constant-size long memory for open-weight LLMs.

`import pipeline` makes transformers' Auto classes know merged AHN folders, without importing torch or transformers
itself, as data preparation and a launcher's --help need neither: the first call of `AutoConfig.from_pretrained`
(which every Auto class makes) registers the AHN models.
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
    """Finds nothing itself: has the real loader of `_AWAITED` call `_register_at_first_use` when it is done."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != _AWAITED:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        execute = spec.loader.exec_module

        def execute_and_prepare(module: ModuleType) -> None:
            execute(module)
            _register_at_first_use(module)

        spec.loader.exec_module = execute_and_prepare
        return spec


def _register_at_first_use(module: ModuleType) -> None:
    """Registering imports modeling files, which must not happen while transformers is half imported."""
    auto_config = module.AutoConfig
    original = auto_config.__dict__["from_pretrained"]

    def from_pretrained(cls: type, *args: Any, **kwargs: Any) -> Any:
        auto_config.from_pretrained = original
        from pipeline.model.registration import register_ahn_models

        register_ahn_models()
        return cls.from_pretrained(*args, **kwargs)

    auto_config.from_pretrained = classmethod(from_pretrained)


if _AWAITED in sys.modules:
    _register_at_first_use(sys.modules[_AWAITED])
else:
    sys.meta_path.insert(0, _OnImport())
