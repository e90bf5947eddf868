"""Every suite by its name, and what all of them are made from."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from pipeline.attention.window import WindowSpec
from pipeline.config import EvalConfig, SuiteName, parse_variant
from pipeline.data.loader import PackedDataset
from pipeline.evaluation.absorbed.suite import AbsorbedSuite
from pipeline.evaluation.efficiency.suite import EfficiencySuite
from pipeline.evaluation.haystack import read_haystack
from pipeline.evaluation.heldout.suite import HeldoutSuite
from pipeline.evaluation.long_context.evaluation import BenchmarkSuite
from pipeline.evaluation.needles.suite import NeedlesSuite
from pipeline.evaluation.probing.suite import ProbingSuite
from pipeline.evaluation.suite import EvaluationInputs, Suite
from pipeline.evaluation.variant_choice import choose_variants
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


def make_suites(inputs: EvaluationInputs) -> list[Suite]:
    """Those of --suites, in its order; each checks its flags and files. `oracle*` is for `heldout` alone."""
    causal = tuple(v for v in inputs.variants if parse_variant(v).kind != "oracle")
    others = replace(inputs, variants=causal)
    return [SUITES[name](inputs if name == "heldout" else others) for name in inputs.config.suites]
