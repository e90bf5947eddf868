"""Every suite by its name, and what all of them are made from."""

from collections.abc import Callable
from functools import partial

from pipeline.attention.window import WindowSpec
from pipeline.config import EvalConfig, SuiteName
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
    """Loads what suites have in common. A plain base has no variants with a memory: they are left out.

    Raises:
        UserError: no tokenizer, a haystack that cannot be read, or no variant that the model has.
    """
    variants = tuple(v for v in config.variants if files.kind != "base" or v not in OF_MEMORIES)
    if not variants:
        raise UserError(f"--variants {config.variants}: --model {config.model} is a plain base, which has no memory")
    tokenizer = load_tokenizer(files.tokenizer)
    haystack = read_haystack(config.haystack, tokenizer) if OF_HAYSTACK & set(config.suites) else []
    return EvaluationInputs(config, files, window, variants, tokenizer, haystack, dataset)


def make_suites(inputs: EvaluationInputs) -> list[Suite]:
    """Those of --suites, in its order; each checks its flags and files."""
    return [SUITES[name](inputs) for name in inputs.config.suites]
