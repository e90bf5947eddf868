"""Before the first step: the scorers of retained tokens are fitted to what the base's later queries read.

Afterwards they stay as they are: the memory's cell learns from what they drop. No step of the engine's optimizer
touches them, so they have no part in its clipping, rates and decay.
"""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from deepspeed.runtime.engine import DeepSpeedEngine
from torch import Tensor
from tqdm import tqdm

from pipeline.ahn.retention_scorer import RetentionScorer
from pipeline.config import TrainRunConfig
from pipeline.data.collate import DrawnSample, collate
from pipeline.data.loader import SampleStream
from pipeline.data.shard_format import DataError
from pipeline.distributed.groups import Ranks, gather_rows, raise_together
from pipeline.errors import UserError
from pipeline.model.augment import memory_layers
from pipeline.teacher.cache_later_masses import token_step
from pipeline.training.cached_teacher import CachedTeacher
from pipeline.training.run_folder import write_atomically
from pipeline.training.schedules import draw_window
from pipeline.training.scorer_features import CachedMasses, Candidates, FeatureStore, join_candidates
from pipeline.training.scorer_fit import fit_scorers
from pipeline.training.stop_flag import EXIT_STOPPED, StopFlag

TOKENS_A_SAMPLE = 1024
SCORER_FACTS = "scorers.json"


@dataclass(frozen=True)
class ScorerFacts:
    """How the fit went: candidates of a layer, seconds of the forwards and of the fit, each layer's loss per unit of
    what is read with one rate for all tokens of a head and with the scores, and the loss (with its ridge) at each
    evaluation.
    """

    samples: int
    candidates: int
    forward_s: float
    fit_s: float
    before: list[float]
    after: list[float]
    losses: list[float]

    def describe(self) -> str:
        """One line."""
        mean = [sum(x) / len(x) for x in (self.before, self.after)]
        return (
            f"scorers of retained tokens: fitted to {self.candidates:,} tokens of {self.samples} samples "
            f"({self.forward_s:.0f} + {self.fit_s:.0f} s); loss per unit of what later queries read "
            f"{mean[0]:.3f} -> {mean[1]:.3f}"
        )

    def row(self) -> dict[str, float]:
        """Its fields of metrics.jsonl, before the first step."""
        loss = {name: sum(x) / len(x) for name, x in (("loss_before", self.before), ("loss", self.after))}
        facts = {"step": 0, "scorer/samples": self.samples, "scorer/candidates": self.candidates}
        return facts | {f"scorer/{name}": x for name, x in loss.items()} | {"scorer/s": self.forward_s + self.fit_s}


def describe_stop_of_fit() -> str:
    """What a stop does meanwhile."""
    return f"stops after this sample; the scorers are not fitted yet, so nothing is saved; exits with {EXIT_STOPPED}"


def fit_run_scorers(
    engine: DeepSpeedEngine,
    stream: SampleStream,
    config: TrainRunConfig,
    ranks: Ranks,
    stop: StopFlag,
    beat: Callable[[], None],
    teacher: CachedTeacher | None = None,
) -> ScorerFacts | None:
    """Fits all layers' scorers to the run's first samples, or to those of which the teacher cache has later masses.

    Each rank has a share of them. Collective.

    Args:
        beat: called whenever something was done.
        teacher: the run's cache, if it has one.

    Returns:
        None where a rank was asked to stop; nothing was changed.

    Raises:
        UserError: on every rank: a sample cannot be read, or no sample has a token that leaves its window.
    """
    started = time.perf_counter()
    samples = _open_samples(stream, config, ranks, teacher)
    stores = _record(engine, samples, ranks, stop, beat)
    if stores is None:
        return None
    forward_s = time.perf_counter() - started
    scorers = [layer.ahn.retention for layer in memory_layers(engine.module.model).values()]
    layers = _fill(join_candidates(stores), scorers)
    count = int(gather_rows([len(layers[0].counts)], ranks).sum())
    if count == 0:
        raise UserError(
            f"--window.retained {config.window.retained}: in the first {samples.count} samples of --data "
            f"{config.data} no token leaves its window, so nothing says which to retain; raise --train.scorer_samples, "
            f"or take longer documents or smaller --window.budgets"
        )

    def add(x: Tensor) -> Tensor:
        total = x.detach().clone()
        dist.all_reduce(total)
        return total

    started = time.perf_counter()
    fit = fit_scorers(layers, add, ranks.device)
    for scorer, values in zip(scorers, fit.values, strict=True):
        scorer.load_state_dict(values)
    seconds = forward_s, time.perf_counter() - started
    return ScorerFacts(samples.count, count, *seconds, fit.before.tolist(), fit.after.tolist(), fit.losses)


def write_facts(folder: Path, facts: ScorerFacts) -> None:
    """Writes scorers.json into the run folder.

    Raises:
        OSError: it cannot be written.
    """
    write_atomically(folder / SCORER_FACTS, json.dumps(asdict(facts), indent=1).encode())


def _open_samples(
    stream: SampleStream, config: TrainRunConfig, ranks: Ranks, teacher: CachedTeacher | None
) -> "_Samples":
    """Collective: what one rank cannot read ends all."""
    samples, error = None, None
    try:
        samples = _Samples(stream, config, {} if teacher is None else teacher.read_later_masses())
    except DataError as found:
        error = found
    raise_together(error, ranks)
    return samples


class _Samples:
    """What scorers are fitted to, one after the other.

    Args:
        stream: of the run, whose first samples they are where the teacher cache has no later masses.
        config: of the run.
        masses: of the teacher cache, by number of the dataset's sample; it may have none.

    Attributes:
        count: how many there are.
    """

    def __init__(self, stream: SampleStream, config: TrainRunConfig, masses: dict[int, np.ndarray]) -> None:
        self._stream, self._seed, self._window = stream, config.train.seed, config.window
        self._masses, self._numbers = masses, list(masses)
        self.count = min(config.train.scorer_samples, len(self._numbers) or config.train.scorer_samples)

    def read(self, place: int) -> tuple[DrawnSample, CachedMasses | None]:
        """The sample at a place, which may lie behind the last one, with the window that it is drawn.

        Raises:
            DataError: it cannot be read.
        """
        if not self._masses:
            number, sample = self._stream.read(place)
            masses = None
        else:
            number = self._numbers[place % len(self._numbers)]
            sample = self._stream.dataset[number]
            masses = CachedMasses(torch.from_numpy(self._masses[number]), token_step(len(sample.input_ids)))
        window = draw_window(self._seed, number, sample.longest_document, self._window)
        return DrawnSample(number, sample, window), masses


def _record(
    engine: DeepSpeedEngine,
    samples: _Samples,
    ranks: Ranks,
    stop: StopFlag,
    beat: Callable[[], None],
) -> list[FeatureStore] | None:
    """What forwards of this rank's samples show; as many forwards on each rank, whatever their samples hold."""
    stores, scored = [], memory_layers(engine.module.model)
    rounds = -(-samples.count // ranks.world_size)
    engine.module.eval()
    for number in tqdm(range(rounds), desc="scorers", unit="sample", disable=not ranks.is_main):
        place, error, drawn, masses = number * ranks.world_size + ranks.rank, None, None, None
        try:
            drawn, masses = samples.read(place)
        except DataError as found:
            error = found
        beat()
        status = gather_rows([error is not None, bool(stop)], ranks)
        if status[:, 0].any():
            raise_together(error, ranks)
        if status[:, 1].any():
            return None
        batch = collate([drawn])
        is_used = len(batch.positions) > 0 and place < samples.count
        stores.append(FeatureStore(batch.documents if is_used else (), TOKENS_A_SAMPLE, scored, masses))
        batch = batch.to(ranks.device)
        engine.module(batch, torch.zeros(len(batch.positions), device=ranks.device), record=stores[-1])
    engine.module.train()
    return stores


def _fill(layers: list[Candidates], scorers: Sequence[RetentionScorer]) -> list[Candidates]:
    """Empty candidates on a rank that has none, so that it takes part in the others' sums."""
    if layers:
        return layers
    return [
        Candidates(*(torch.empty(shape) for shape in ((0, hidden), (0, heads), (0, heads, 0), (0, 0), (0, 0))))
        for heads, hidden in (scorer.weight.shape for scorer in scorers)
    ]
