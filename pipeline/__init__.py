"""Artificial Hippocampus Networks: constant-size long memory for open-weight LLMs.

`import pipeline` makes transformers' Auto classes know merged AHN folders. It imports neither torch nor transformers
for that, as data preparation needs neither: registration waits until transformers' auto classes are imported.
"""

import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

_AWAITED = "transformers.models.auto.modeling_auto"


class _RegisterAfterImport(MetaPathFinder):
    """Finds nothing itself; lets the real loader of `_AWAITED` run, then registers our models, once."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != _AWAITED:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        execute = spec.loader.exec_module

        def execute_and_register(module: ModuleType) -> None:
            execute(module)
            _register()

        spec.loader.exec_module = execute_and_register
        return spec


def _register() -> None:
    from pipeline.model.registration import register_ahn_models

    register_ahn_models()


if _AWAITED in sys.modules:
    _register()
else:
    sys.meta_path.insert(0, _RegisterAfterImport())
