"""A whole evaluation: this process measures its share of the units; rank 0 waits for the rest and reports."""

import resource
import sys
import time
from collections.abc import Sequence

import torch
from tqdm import tqdm
from transformers import PreTrainedModel

from pipeline.config import MemoryConfig, Variant
from pipeline.distributed.device import choose_device
from pipeline.distributed.launch import LaunchedRank
from pipeline.errors import UserError
from pipeline.evaluation.claims import claimed
from pipeline.evaluation.facts import describe, weights_fingerprint
from pipeline.evaluation.out_of_memory import within_memory
from pipeline.evaluation.placement import choose_dtype
from pipeline.evaluation.reader import Reader
from pipeline.evaluation.records import EvaluationFolder
from pipeline.evaluation.report import SuiteResult, write_report
from pipeline.evaluation.starts import note_start
from pipeline.evaluation.suite import EvaluationInputs, Suite, Unit
from pipeline.evaluation.training_curve import read_training_curve
from pipeline.evaluation.unmeasured import why_unmeasured
from pipeline.evaluation.waiting import finished_counter, wait_for_all
from pipeline.model.loading import load_base, load_model, set_window


def evaluate(inputs: EvaluationInputs, suites: Sequence[Suite], ranks: LaunchedRank) -> dict | None:
    """Measures what has no record yet and writes the report.

    Returns:
        report.json's content on rank 0, None on the others.

    Raises:
        UserError: no suite has anything to measure, the model cannot be loaded, memory does not suffice, or --output
            cannot be written, is damaged, holds an evaluation of something else, or another is running there or has
            taken it over.
    """
    work = [(suite, unit) for suite in suites for unit in suite.units()]
    unmeasured = find_unmeasured(inputs, suites, work, ranks)
    config = inputs.config
    device = choose_device(ranks.local_rank)
    dtype = choose_dtype(config.dtype, device)
    fingerprint = weights_fingerprint(inputs.files)
    common = {
        "weights": fingerprint,
        "num_sink_tokens": inputs.window.num_sink_tokens,
        "window_size": inputs.window.window_size,
        "dtype": str(dtype),
        "yarn_factor": config.yarn_factor,
        "seed": config.seed,
        "evicted": "counted",
    }
    settings = {suite.name: suite.settings for suite in suites if suite.name not in unmeasured}
    with claimed(config.output, ranks.rank) as claim:
        folder = EvaluationFolder(config.output, ranks.rank, common, settings, claim)
        if ranks.rank == 0:
            note_start(config.output)
        share = [(suite, unit) for suite, unit in share_of(work, ranks) if not folder.has(suite.name, unit.key)]
        if share:
            remedy = f"choose a narrower --dtype than {dtype}, or start fewer processes on this machine"
            with within_memory(f"--model {config.model}", remedy):
                model = load(inputs, dtype, config.check_base).eval().to(device)
            measure_share(model, inputs, share, work, folder, is_watched=ranks.rank == 0)
        if ranks.rank != 0:
            return None
        wait_for_all(work, folder, ranks.world_size)
        facts = describe(inputs, fingerprint, dtype, ranks.world_size, folder)
        curve = None if config.run is None else read_training_curve(config.run)
        results = []
        for suite in suites:
            records = {unit.key: folder.records[suite.name, unit.key] for s, unit in work if s is suite}
            results.append(SuiteResult(suite, records, unmeasured.get(suite.name, "")))
        folder.check_claim()
        return write_report(folder.path, results, facts, curve)


def find_unmeasured(
    inputs: EvaluationInputs, suites: Sequence[Suite], work: Sequence[tuple[Suite, Unit]], ranks: LaunchedRank
) -> dict[str, str]:
    """Why suites have no unit, by suite; rank 0 says so on stderr.

    Raises:
        UserError: none has any.
    """
    found = {suite.name for suite, _ in work}
    reasons = {suite.name: why_unmeasured(suite.name, inputs) for suite in suites if suite.name not in found}
    if not work:
        raise UserError(f"--suites {' '.join(reasons)}: nothing to measure: {'; '.join(reasons.values())}")
    if ranks.rank == 0:
        for reason in reasons.values():
            print(f"not measured: {reason}", file=sys.stderr, flush=True)
    return reasons


def share_of(work: Sequence[tuple[Suite, Unit]], ranks: LaunchedRank) -> list[tuple[Suite, Unit]]:
    """Every `world_size`-th unit; rank 0 takes the timings too, at the end, when the other ranks may be done."""
    shared = [item for item in work if not item[1].on_first_rank]
    timings = [item for item in work if item[1].on_first_rank] if ranks.rank == 0 else []
    return shared[ranks.rank :: ranks.world_size] + timings


def load(inputs: EvaluationInputs, dtype: torch.dtype, check: bool) -> PreTrainedModel:
    """The model with its memories; a plain base with ones that are not used. `check`: as in `load_base`."""
    files = inputs.files
    if files.kind == "base":
        return load_base(str(files.folder), memory=MemoryConfig(), window=inputs.window, dtype=dtype, check=check)
    model = load_model(str(files.folder), dtype=dtype, base=files.base, check=check)
    set_window(model, inputs.window)
    return model


def measure_share(
    model: PreTrainedModel,
    inputs: EvaluationInputs,
    share: Sequence[tuple[Suite, Unit]],
    work: Sequence[tuple[Suite, Unit]],
    folder: EvaluationFolder,
    is_watched: bool,
) -> None:
    """Measures this rank's units. A bar, if it is watched, shows the work of all ranks.

    Raises:
        UserError: memory does not suffice for one.
    """
    config = inputs.config

    def reader(variant: Variant) -> Reader:
        options = config.prefill_chunk, config.yarn_factor, inputs.decision_interval, config.seed
        return Reader(model, variant, inputs.window, *options)

    readers = {variant: reader(variant) for variant in dict.fromkeys(v for _, unit in share for v in unit.variants)}
    remedy = (
        f"give a smaller --prefill_chunk than {config.prefill_chunk:,}, shorter texts (of benchmarks: --max_context), "
        f"fewer --variants or processes on this machine; what is measured is kept"
    )
    count = finished_counter(work, folder)
    with tqdm(total=len(work), initial=count(), unit="unit", disable=not is_watched) as bar:
        for suite, unit in share:
            bar.set_description(suite.name, refresh=False)
            started = time.perf_counter()
            with within_memory(f"--suites {suite.name}: {unit.key}", remedy):
                record = suite.measure(unit, {variant: readers[variant] for variant in unit.variants})
            peak_rss_gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
            folder.write(suite.name, unit.key, record, time.perf_counter() - started, peak_rss_gib)
            if is_watched:
                bar.update(count() - bar.n)
