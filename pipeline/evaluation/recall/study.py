"""The scores of one base and of one trained memory over the study's grid."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TypeVar

import torch

from pipeline.attention.window import WindowSpec
from pipeline.config import MemoryConfig, RecallStudyConfig
from pipeline.errors import UserError
from pipeline.evaluation.recall.limit import find_readouts, score_limit
from pipeline.evaluation.recall.scoring import (
    GridPoint,
    check_base,
    score_foreign_state,
    score_full,
    score_memory,
    score_memory_off,
)
from pipeline.evaluation.recall.summary import BaseScores, MemoryScores, RetainedScores
from pipeline.evaluation.writing import write_atomically, writes_to
from pipeline.model.loading import load_base, load_model

Scores = TypeVar("Scores", BaseScores, MemoryScores, RetainedScores)


def grid_of(config: RecallStudyConfig) -> list[GridPoint]:
    """Every number of facts at every distance."""
    return [GridPoint(facts, distance) for facts in config.facts for distance in config.distances]


def score_base(folder: Path, config: RecallStudyConfig, points: list[GridPoint], seed: int) -> list[BaseScores]:
    """Scores the base at every point, on the documents of `seed`; with memories that were never trained, which are
    sinks + window.

    Raises:
        UserError: the base does not need the distance, or does not master it.
    """
    window = WindowSpec(config.task.num_sink_tokens, config.task.window_size)
    model = load_base(str(folder), memory=MemoryConfig(), window=window, dtype=torch.float32).eval()
    middle = points[len(points) // 2]  # where readouts differ: with few facts many answer all, with many none does
    readouts, scores = find_readouts(model, middle.documents(config.task, config.questions, seed)), []
    for point in points:
        documents = point.documents(config.task, config.questions, seed)
        full, alone = score_full(model, documents), score_memory(model, documents)
        check_base(full, alone, point, folder.name)
        scores.append(BaseScores(full, alone, score_limit(model, documents, readouts)))
    return scores


def score_adapter(adapter: Path, config: RecallStudyConfig, points: list[GridPoint], seed: int) -> list[MemoryScores]:
    """Scores a trained memory and its controls at every point, on the documents of `seed`."""
    model = load_model(str(adapter), dtype=torch.float32).eval()
    scores = []
    for point in points:
        documents = point.documents(config.task, config.questions, seed)
        foreign = score_foreign_state(model, documents)
        scores.append(MemoryScores(score_memory(model, documents), score_memory_off(model, documents), foreign))
    return scores


def keep_scores(path: Path, kind: type[Scores], num_points: int, compute: Callable[[], list[Scores]]) -> list[Scores]:
    """What `compute` returned the first time, a score a point, from `path` (--output/scores/NAME) since then.

    Raises:
        UserError: `path` cannot be written, or is damaged.
    """
    if path.exists():
        return _read_scores(path, kind, num_points)
    scores = compute()
    with writes_to(path.parents[1]):
        path.parent.mkdir(exist_ok=True)
        write_atomically(path, json.dumps([asdict(row) for row in scores]) + "\n")
    return scores


def _read_scores(path: Path, kind: type[Scores], num_points: int) -> list[Scores]:
    try:
        scores = [kind(**row) for row in json.loads(path.read_bytes())]
        values = [value for row in scores for value in asdict(row).values()]
        if len(scores) != num_points or not all(isinstance(value, int | float) for value in values):
            raise ValueError(f"not the scores of {num_points} points")
    except (OSError, ValueError, TypeError) as error:
        raise UserError(
            f"--output {path.parents[1]}: scores/{path.name} is damaged ({error}); delete it to score again"
        ) from error
    return scores
