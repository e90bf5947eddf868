"""Measures a trained AHN on held-out documents: KL to full attention and perplexity, past the window.

    python launchers/run_eval.py --model RUN/adapter --data HELDOUT --output EVAL --window_size 96
    torchrun --nproc_per_node 2 launchers/run_eval.py ...        (also: deepspeed --num_gpus 2, mpiexec -n 2)

Writes report.html, report.json and documents.jsonl. A stopped evaluation goes on from what is finished.
"""

from pipeline.config import EvalConfig, parse_cli
from pipeline.data.loader import PackedDataset
from pipeline.data.shard_format import tokenizer_fingerprint
from pipeline.distributed.launch import find_rank
from pipeline.errors import UserError, run_cli
from pipeline.evaluation.documents import select_pieces
from pipeline.evaluation.summary import format_summary
from pipeline.evaluation.training_curve import read_training_curve
from pipeline.model.files import find_tokenizer_json, resolve_model


def main() -> None:
    config = parse_cli(EvalConfig)
    files = resolve_model(config.model, config.base)
    window = files.choose_window(config.num_sink_tokens, config.window_size)
    if window is None:
        raise UserError(f"--model {config.model} is a plain base without a memory; give an adapter or merged model")
    dataset = PackedDataset(config.data, config.data_cache, config.data_cache_bytes)
    if tokenizer_fingerprint(find_tokenizer_json(files.tokenizer)) != dataset.manifest.tokenizer_sha256:
        raise UserError(
            f"--data {config.data} was tokenised with {dataset.manifest.tokenizer_name}, not as {files.tokenizer} "
            f"does it; prepare it with --tokenizer {files.tokenizer}"
        )
    if config.run is not None:
        read_training_curve(config.run)
    pieces = select_pieces(dataset, window.lossless_budget, config.max_documents, config.pieces_per_document)
    ranks = find_rank()

    from pipeline.evaluation.runner import evaluate

    summary = evaluate(config, files, window, dataset, pieces, ranks)
    if summary is not None:
        print(format_summary(summary))
        print(f"report: {config.output / 'report.html'}")


if __name__ == "__main__":
    run_cli(main)
