"""Names of variants of attention: what --variants takes, and what each name says."""

import re
from dataclasses import dataclass
from typing import Literal, get_args

from pipeline.config.command_line import ConfigError
from pipeline.flags import suggestion

Variant = str
"""A name that `parse_variant` reads."""
NamedKind = Literal["full", "full_yarn", "window", "compressive_max", "compressive_mean", "memory_off", "ahn"]
CountedKind = Literal["wider", "retained", "random", "received", "oracle"]
NAMED: tuple[NamedKind, ...] = get_args(NamedKind)
COUNTED: tuple[CountedKind, ...] = get_args(CountedKind)
"""Their names end in a number M of tokens: `retained64`, and with the model's cell `retained64_ahn`."""
_COUNTED_NAME = re.compile(rf"({'|'.join(COUNTED)})([1-9][0-9]*)(_ahn)?")


@dataclass(frozen=True)
class VariantSpec:
    """What a name says.

    `num_tokens`: M, tokens that attention sees besides sinks and window, 0 where the name has no number. `has_cell`:
    the model's own cells compress what attention no longer sees.
    """

    name: Variant
    kind: NamedKind | CountedKind
    num_tokens: int = 0
    has_cell: bool = False

    @property
    def is_retaining(self) -> bool:
        """Whether tokens that left the window are kept as they are."""
        return self.kind in COUNTED and self.kind != "wider"


def parse_variant(name: str) -> VariantSpec:
    """
    Raises:
        ConfigError: no variant has this name; names the one most like it.
    """
    if name in NAMED:
        return VariantSpec(name, name, has_cell=name == "ahn")
    found = _COUNTED_NAME.fullmatch(name)
    if found is None or (found[3] and found[1] != "retained"):
        raise ConfigError(f"--variants {name}: no such variant{suggestion(name, _names_like(name))}; {known_names()}")
    return VariantSpec(name, found[1], int(found[2]), has_cell=found[3] is not None)


def known_names() -> str:
    """All names, in words."""
    counted = ", ".join(f"{kind}M" for kind in COUNTED)
    return f"known are {', '.join(NAMED)}, and for any M >= 1 {counted}, retainedM_ahn"


def _names_like(name: str) -> list[str]:
    """Names with the number that `name` has."""
    number = next((digits for digits in re.findall(r"[1-9][0-9]*", name)), "64")
    return [*NAMED, *(f"{kind}{number}" for kind in COUNTED), f"retained{number}_ahn"]


def default_variants(num_retained: int) -> list[Variant]:
    """What is compared where no --variants are given, of a model that retains so many tokens."""
    if num_retained == 0:
        return ["full", "window", "compressive_max", "compressive_mean", "memory_off", "ahn"]
    counted = [f"{name}{num_retained}" for name in ("wider", "retained")]
    return ["full", "window", *counted, f"retained{num_retained}_ahn", "ahn"]
