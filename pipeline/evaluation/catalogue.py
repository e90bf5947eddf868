"""Every suite by its name, and what all of them are made from."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from pipeline.attention.window import WindowSpec
from pipeline.config import EvalConfig, SuiteName, Variant, parse_variant
from pipeline.config.variants import default_variants
from pipeline.data.loader import PackedDataset
from pipeline.errors import UserError
from pipeline.evaluation.absorbed.suite import AbsorbedSuite
from pipeline.evaluation.efficiency.suite import EfficiencySuite
from pipeline.evaluation.haystack import read_haystack
from pipeline.evaluation.heldout.suite import HeldoutSuite
from pipeline.evaluation.long_context.evaluation import BenchmarkSuite
from pipeline.evaluation.needles.suite import NeedlesSuite
from pipeline.evaluation.probing.suite import ProbingSuite
from pipeline.evaluation.suite import EvaluationInputs, Suite
from pipeline.model.files import ModelFiles
from pipeline.tokenizer import load_tokenizer

SUITES: dict[SuiteName, Callable[[EvaluationInputs], Suite]] = {
    "heldout": HeldoutSuite,
    "needles": NeedlesSuite,
    "absorbed": AbsorbedSuite,
    "efficiency": EfficiencySuite,
    "probing": ProbingSuite,
    "lveval": partial(BenchmarkSuite, "lveval"),
    "infinitebench": partial(BenchmarkSuite, "infinitebench"),
}
OF_HAYSTACK = {"needles", "absorbed", "efficiency"}
OF_MEMORIES = ("memory_off", "ahn")


def make_inputs(
    config: EvalConfig, files: ModelFiles, window: WindowSpec, dataset: PackedDataset | None
) -> EvaluationInputs:
    """Loads what suites have in common.

    Args:
        config: the evaluation's.
        files: of --model.
        window: the model's own with the flags in its place; what it retains says which variants are the default.
        dataset: of --data.

    Raises:
        UserError: no tokenizer, a haystack that cannot be read, or variants that the model or the suites do not have.
    """
    variants = choose_variants(config, files, window.num_retained_tokens)
    tokenizer = load_tokenizer(files.tokenizer)
    haystack = read_haystack(config.haystack, tokenizer) if OF_HAYSTACK & set(config.suites) else []
    window, interval = window.without_retained, window.decision_interval
    return EvaluationInputs(config, files, window, variants, tokenizer, haystack, dataset, interval)


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


def make_suites(inputs: EvaluationInputs) -> list[Suite]:
    """Those of --suites, in its order; each checks its flags and files. `oracle*` is for `heldout` alone."""
    causal = tuple(v for v in inputs.variants if parse_variant(v).kind != "oracle")
    others = replace(inputs, variants=causal)
    return [SUITES[name](inputs if name == "heldout" else others) for name in inputs.config.suites]
