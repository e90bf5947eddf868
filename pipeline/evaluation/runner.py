"""A whole evaluation: this process scores its share of the pieces; rank 0 waits for the rest and reports."""

import resource
import time
from dataclasses import fields

import torch
from tqdm import tqdm
from transformers import PreTrainedModel

from pipeline.attention.window import WindowSpec
from pipeline.config import EvalConfig
from pipeline.data.loader import PackedDataset
from pipeline.distributed.launch import LaunchedRank
from pipeline.evaluation.documents import Piece
from pipeline.evaluation.facts import describe, weights_fingerprint
from pipeline.evaluation.perplexity import PieceScores, score_piece
from pipeline.evaluation.placement import choose_device, choose_dtype
from pipeline.evaluation.records import EvaluationFolder, PieceRecord
from pipeline.evaluation.report import write_report
from pipeline.evaluation.training_curve import read_training_curve
from pipeline.model.files import ModelFiles
from pipeline.model.loading import load_model

POLL_SECONDS = 0.2
SIGNIFICANT_DIGITS = 7


def evaluate(
    config: EvalConfig,
    files: ModelFiles,
    window: WindowSpec,
    dataset: PackedDataset,
    pieces: list[Piece],
    ranks: LaunchedRank,
) -> dict | None:
    """Scores `pieces` and writes the report.

    Returns:
        report.json's content on rank 0, None on the others.

    Raises:
        UserError: the model cannot be loaded, or --output holds an evaluation of something else.
    """
    device = choose_device(ranks.local_rank)
    dtype = choose_dtype(config.dtype, device)
    fingerprint = weights_fingerprint(files)
    settings = {
        "weights": fingerprint,
        "data": dataset.fingerprint,
        "num_sink_tokens": window.num_sink_tokens,
        "window_size": window.window_size,
        "dtype": str(dtype),
    }
    folder = EvaluationFolder(config.output, settings)
    if not all(folder.has(piece.key) for piece in pieces[ranks.rank :: ranks.world_size]):
        model = load_model(str(files.folder), dtype=dtype, base=files.base).eval().to(device)
        score_share(model, dataset, pieces, window, folder, ranks, config.logits_chunk_size)
    if ranks.rank != 0:
        return None
    records = wait_for_all(pieces, folder)
    facts = describe(files, fingerprint, dataset, dtype, ranks.world_size)
    curve = None if config.run is None else read_training_curve(config.run)
    return write_report(folder.path, records, window, facts, curve)


def score_share(
    model: PreTrainedModel,
    dataset: PackedDataset,
    pieces: list[Piece],
    window: WindowSpec,
    folder: EvaluationFolder,
    ranks: LaunchedRank,
    chunk_size: int,
) -> None:
    """Scores every `world_size`-th piece that has no record yet. Rank 0's bar shows the work of all ranks."""
    device = model.device
    with tqdm(total=len(pieces), unit="piece", disable=ranks.rank != 0) as bar:
        for piece in pieces[ranks.rank :: ranks.world_size]:
            if not folder.has(piece.key):
                started = time.perf_counter()
                ids = torch.from_numpy(dataset[piece.sample].input_ids[piece.start : piece.end].astype("int64"))
                positions = torch.from_numpy(piece.positions)
                scores = score_piece(model, ids.to(device), positions.to(device), window, chunk_size)
                seconds = time.perf_counter() - started
                folder.write(_record(piece, scores, seconds, ranks.world_size))
            _show_progress(bar, pieces, folder)


def wait_for_all(pieces: list[Piece], folder: EvaluationFolder) -> list[PieceRecord]:
    """Every piece's record, in order, as soon as the other processes have written theirs.

    A process that fails is the launcher's to notice: torchrun, deepspeed and mpiexec then end this one too.
    """
    with tqdm(total=len(pieces), unit="piece", desc="waiting for other ranks", delay=1) as bar:
        while _show_progress(bar, pieces, folder) < len(pieces):
            time.sleep(POLL_SECONDS)
    return [folder.read(piece.key) for piece in pieces]


def _show_progress(bar: tqdm, pieces: list[Piece], folder: EvaluationFolder) -> int:
    finished = sum(folder.has(piece.key) for piece in pieces)
    bar.update(finished - bar.n)
    return finished


def _record(piece: Piece, scores: PieceScores, seconds: float, num_ranks: int) -> PieceRecord:
    values = {
        field.name: [float(f"{v:.{SIGNIFICANT_DIGITS}g}") for v in getattr(scores, field.name).tolist()]
        for field in fields(scores)
    }
    return PieceRecord(
        key=piece.key,
        document=piece.document,
        length=piece.end - piece.start,
        positions=piece.positions.tolist(),
        seconds=seconds,
        num_ranks=num_ranks,
        peak_rss_gib=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        **values,
    )
