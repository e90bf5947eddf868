"""Which variants an evaluation measures. No torch: submit.py asks, too."""

from pipeline.config import EvalConfig, Variant, parse_variant
from pipeline.config.variants import default_variants
from pipeline.errors import UserError
from pipeline.model.files import ModelFiles

OF_MEMORIES = ("memory_off", "ahn")


def choose_variants(config: EvalConfig, files: ModelFiles, num_retained: int) -> tuple[Variant, ...]:
    """--variants or their default. A plain base has none with a memory: they are left out.

    Raises:
        UserError: none is left, one needs a scorer that the model has not, or no suite measures one of them.
    """
    asked = default_variants(num_retained) if config.variants is None else config.variants
    variants = tuple(v for v in asked if files.kind != "base" or v not in OF_MEMORIES)
    if not variants:
        raise UserError(f"--variants {asked}: --model {config.model} is a plain base, which has no memory")
    scored = next((v for v in variants if parse_variant(v).kind == "retained"), None)
    if scored is not None and not files.has_scorer:
        raise UserError(
            f"--variants {scored}: --model {config.model} has no scorer that chooses tokens; train one (launchers/"
            f"train.py --train.loss retention, or with --window.retained), or leave it out"
        )
    oracle = next((v for v in variants if parse_variant(v).kind == "oracle"), None)
    if oracle is not None and "heldout" not in config.suites:
        raise UserError(
            f"--variants {oracle}: it sees the text's future, which `heldout` alone has; add heldout to --suites, or "
            f"leave it out"
        )
    return variants
