"""Why a suite that was asked for has nothing to measure: it needs variants that are not there."""

from collections.abc import Mapping
from typing import get_args

from pipeline.config import SuiteName, Variant
from pipeline.evaluation.efficiency.suite import AS_COSTLY_AS_ANOTHER
from pipeline.evaluation.suite import EvaluationInputs

NEEDS_ONE_OF: Mapping[SuiteName, tuple[Variant, ...]] = {
    "needles": tuple(v for v in get_args(Variant) if v != "memory_off"),
    "efficiency": tuple(v for v in get_args(Variant) if v not in AS_COSTLY_AS_ANOTHER),
    "probing": ("ahn",),
}
"""Suites that leave out variants. With one of these a suite has units, with none of them none."""


def why_unmeasured(suite: SuiteName, inputs: EvaluationInputs) -> str:
    """One sentence about a suite without units: what it needs, and what was found."""
    if suite not in NEEDS_ONE_OF:
        return f"`{suite}` has no unit to measure: its files hold no example"
    needed, asked = NEEDS_ONE_OF[suite], inputs.config.variants
    needs = f"`{suite}` needs {'one of ' if len(needed) > 1 else ''}--variants {' '.join(needed)}"
    if set(needed) & set(asked):
        return f"{needs}, and --model {inputs.files.folder} is a plain base, which has no memory"
    return f"{needs}, and --variants {' '.join(asked)} was asked for"
