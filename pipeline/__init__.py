"""Artificial Hippocampus Networks: constant-size long memory for open-weight LLMs.

`import pipeline` makes transformers' Auto classes know merged AHN folders, without importing torch or transformers
itself, as data preparation and a launcher's --help need neither. `AutoConfig.from_pretrained` (which every Auto class
calls) registers the AHN model of a folder's family when it meets one, and `AutoTokenizer` takes the folder for one of
its base: transformers chooses a tokenizer by the model's type.
"""

import importlib.util
import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

_PREFIX = "ahn_"


class _OnImport(MetaPathFinder):
    """Finds nothing itself: has the real loader of a module call `prepare` with it when it is done."""

    def __init__(self, name: str, prepare: Callable[[ModuleType], None]) -> None:
        self._name, self._prepare = name, prepare

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != self._name:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        execute = spec.loader.exec_module

        def execute_and_prepare(module: ModuleType) -> None:
            execute(module)
            self._prepare(module)

        spec.loader.exec_module = execute_and_prepare
        return spec


def _register_when_met(module: ModuleType) -> None:
    """Registering imports modeling files, which must not happen while transformers is half imported."""
    auto_config = module.AutoConfig
    original = auto_config.from_pretrained.__func__

    def from_pretrained(cls: type, pretrained_model_name_or_path: Any, **kwargs: Any) -> Any:
        settings, _ = module.PreTrainedConfig.get_config_dict(pretrained_model_name_or_path, **kwargs)
        if str(settings.get("model_type")).startswith(_PREFIX):
            from pipeline.model.registration import register_ahn_model

            register_ahn_model(settings["model_type"])
        return original(cls, pretrained_model_name_or_path, **kwargs)

    from_pretrained.__doc__ = original.__doc__
    auto_config.from_pretrained = classmethod(from_pretrained)


def _tokenize_as_the_base(module: ModuleType) -> None:
    auto_tokenizer, auto_config = module.AutoTokenizer, module.AutoConfig
    original = auto_tokenizer.from_pretrained.__func__

    def from_pretrained(cls: type, pretrained_model_name_or_path: Any, *inputs: Any, **kwargs: Any) -> Any:
        try:
            settings, _ = module.PreTrainedConfig.get_config_dict(pretrained_model_name_or_path, **kwargs)
        except (OSError, ValueError):  # a tokenizer without a model, or nothing: the original knows
            settings = {}
        model_type = str(settings.get("model_type"))
        if kwargs.get("config") is None and model_type.startswith(_PREFIX):
            fields = {name: value for name, value in settings.items() if name not in ("model_type", "ahn")}
            kwargs["config"] = auto_config.for_model(model_type.removeprefix(_PREFIX), **fields)
        return original(cls, pretrained_model_name_or_path, *inputs, **kwargs)

    from_pretrained.__doc__ = original.__doc__
    auto_tokenizer.from_pretrained = classmethod(from_pretrained)


for _name, _prepare in (
    ("transformers.models.auto.configuration_auto", _register_when_met),
    ("transformers.models.auto.tokenization_auto", _tokenize_as_the_base),
):
    if _name in sys.modules:
        _prepare(sys.modules[_name])
    else:
        sys.meta_path.insert(0, _OnImport(_name, _prepare))
