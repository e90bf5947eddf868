"""Why a suite that was asked for has nothing to measure: it needs variants that are not there."""

from collections.abc import Mapping

from pipeline.config import SuiteName, Variant, parse_variant
from pipeline.config.variants import NAMED, default_variants
from pipeline.evaluation.efficiency.suite import AS_COSTLY_AS_ANOTHER
from pipeline.evaluation.suite import EvaluationInputs

CAUSAL = (*NAMED, "wider64", "retained64", "retained64_ahn", "random64", "received64")
"""One of each kind but `oracle`, which `heldout` alone measures."""
NEEDS_ONE_OF: Mapping[SuiteName, tuple[Variant, ...]] = {
    "needles": tuple(v for v in CAUSAL if v != "memory_off"),
    "efficiency": tuple(v for v in CAUSAL if v not in AS_COSTLY_AS_ANOTHER),
    "probing": ("ahn",),
}
"""Suites that leave out more. With one of these, 64 any number, a suite has units, with none of them none."""


def why_unmeasured(suite: SuiteName, inputs: EvaluationInputs) -> str:
    """One sentence about a suite without units: what it needs, and what was found."""
    needed, asked = NEEDS_ONE_OF.get(suite, CAUSAL), inputs.config.variants or default_variants(0)
    if suite not in NEEDS_ONE_OF and any(_is_one_of(variant, needed) for variant in inputs.variants):
        return f"`{suite}` has no unit to measure: its files hold no example"
    needs = f"`{suite}` needs {'one of ' if len(needed) > 1 else ''}--variants {' '.join(needed)}"
    if any(_is_one_of(variant, needed) for variant in asked):
        return f"{needs}, and --model {inputs.files.folder} is a plain base, which has no memory"
    return f"{needs}, and --variants {' '.join(asked)} was asked for"


def _is_one_of(variant: Variant, examples: tuple[Variant, ...]) -> bool:
    return parse_variant(variant).kind in {parse_variant(example).kind for example in examples}
