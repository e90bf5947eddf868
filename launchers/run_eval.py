"""Measures a model with a memory beside full attention, its window alone, and baselines of the same size.

    python launchers/run_eval.py --model RUN/adapter --data HELDOUT --output EVAL --window_size 96
    python launchers/run_eval.py --model RUN/adapter --output EVAL --suites needles absorbed
    torchrun --nproc_per_node 2 -- launchers/run_eval.py ...        (also: deepspeed --num_gpus 2, mpiexec -n 2)
    python launchers/run_eval.py --fetch lveval infinitebench --data_root BENCHMARKS

Writes report.html, report.json, summary.txt (also printed), examples.jsonl and run.json. A stopped evaluation goes on
from what is finished.
"""

from pipeline.attention.window import WindowSpec
from pipeline.config import EvalConfig, parse_cli
from pipeline.data.loader import PackedDataset
from pipeline.distributed.launch import LaunchedRank, find_rank
from pipeline.errors import GOES_ON, UserError, run_cli
from pipeline.evaluation.failures import noted_failure
from pipeline.evaluation.training_curve import read_training_curve
from pipeline.model.files import ModelFiles, resolve_model
from pipeline.tokenizer import fingerprint_of


def choose_window(config: EvalConfig, files: ModelFiles) -> WindowSpec:
    """The model's window with the flags in its place.

    Raises:
        UserError: a plain base, which has none, and no flags; tokens to retain without a scorer that chooses them.
    """
    retained = config.num_retained_tokens
    if files.kind != "base":
        return files.choose_window(config.num_sink_tokens, config.window_size, retained)
    if retained:
        raise UserError(
            f"--num_retained_tokens {retained}: --model {config.model} is a plain base, which has no scorer; name "
            f"variants that need none, as in --variants full window random{retained} received{retained}"
        )
    if config.num_sink_tokens is None or config.window_size is None:
        raise UserError(
            f"--model {config.model} is a plain base without a memory: give --num_sink_tokens and --window_size for "
            f"the variants that have a window, or an adapter or merged model"
        )
    return WindowSpec(config.num_sink_tokens, config.window_size)


def open_dataset(config: EvalConfig, files: ModelFiles) -> PackedDataset | None:
    """The packed documents of --data.

    Raises:
        UserError: they were made by another tokenizer.
    """
    if config.data is None:
        return None
    dataset = PackedDataset(config.data, config.data_cache, config.data_cache_bytes)
    if fingerprint_of(files.tokenizer) != dataset.manifest.tokenizer_sha256:
        raise UserError(
            f"--data {config.data} was tokenised with {dataset.manifest.tokenizer_name}, not as {files.tokenizer} "
            f"does it; prepare it with --tokenizer {files.tokenizer}"
        )
    return dataset


def main() -> None:
    config = parse_cli(EvalConfig)
    if config.fetch:
        from pipeline.evaluation.long_context.fetch import fetch_all

        fetch_all(config.fetch, config.data_root)
        return
    ranks = find_rank()
    with noted_failure(config.output, ranks.rank):
        run(config, ranks)


def run(config: EvalConfig, ranks: LaunchedRank) -> None:
    """Measures this process's share; rank 0 writes the report."""
    files = resolve_model(config.model, config.base)
    window, dataset = choose_window(config, files), open_dataset(config, files)
    if config.run is not None:
        read_training_curve(config.run)

    from pipeline.evaluation.catalogue import make_inputs, make_suites
    from pipeline.evaluation.report import SUMMARY_NAME
    from pipeline.evaluation.runner import evaluate

    inputs = make_inputs(config, files, window, dataset)
    suites = make_suites(inputs)
    if evaluate(inputs, suites, ranks) is not None:
        print((config.output / SUMMARY_NAME).read_text(encoding="utf-8"))
        print(f"report: {config.output / 'report.html'}")


if __name__ == "__main__":
    run_cli(main, GOES_ON)
