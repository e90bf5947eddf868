"""The teacher's signals for training: from a cache, checked before the first step against the run that will read it.

What is read of a cache is keyed by sample and position, so seed, order, ranks, micro-batch, window and sinks are free.
No torch.
"""

import os
import sys
from dataclasses import dataclass
from typing import Literal

import numpy as np

from pipeline.config import TrainRunConfig, require
from pipeline.data.loader import SampleStream
from pipeline.data.shard_format import DataError
from pipeline.model.base_config import read_base_config
from pipeline.teacher.cache import TeacherCache
from pipeline.teacher.cache_later_masses import read_later_masses
from pipeline.teacher.signals import HiddenSpec, Signal
from pipeline.training.schedules import SMALLEST_BUDGET


@dataclass(frozen=True)
class CachedTeacher:
    """A cache, and what samples do whose shard it does not have."""

    cache: TeacherCache
    fallback: Literal["error", "online"]

    def read_later_masses(self) -> dict[int, np.ndarray]:
        """What the cache has of later masses, by number of the dataset's sample; without any, nothing.

        Raises:
            DataError: they are missing, damaged or of another cache.
        """
        info = self.cache.info
        return read_later_masses(self.cache.folder, info) if info.later_mass_samples else {}

    def find(self, index: int, key: str, positions: np.ndarray) -> Signal | None:
        """The signal of the dataset's sample `index` (its key: `key`) at `positions`; None where the teacher must run.

        Raises:
            DataError: the signal is damaged or of another sample, or missing and not to be replaced.
        """
        if self.fallback == "online" and not self.cache.has_sample(index):
            return None
        try:
            return self.cache.read(index, key, positions)
        except DataError:
            if self.fallback == "online" and not self.cache.has_sample(index):  # deleted in this instant
                return None
            raise


def open_cached_teacher(config: TrainRunConfig, stream: SampleStream) -> CachedTeacher | None:
    """The cache that --teacher_cache names, if any, once it is known to serve this run. The weights of the teacher
    are compared by `check_teacher`.

    Raises:
        UserError: the cache is of other data, another tokenizer or a model of other sizes, lacks shards, or lacks
            positions that the run's windows can ask for.
    """
    if config.teacher_cache is None:
        return None
    cache = TeacherCache(config.teacher_cache, stream.dataset)
    flag, info = f"--teacher_cache {config.teacher_cache}", cache.info
    expected = stream.dataset.manifest.tokenizer_sha256
    require(
        info.tokenizer_sha256 == expected,
        f"{flag} was made with the tokenizer {info.tokenizer_sha256}, --data {config.data} with {expected}",
    )
    name = "hidden_size" if isinstance(info.signal, HiddenSpec) else "vocab_size"
    found, due = getattr(info.signal, name), read_base_config(config.model)[name]
    require(found == due, f"{flag} has signals with {name} {found}, --model {config.model} has {due}")
    _check_windows(config, cache)
    missing = [stream.dataset.manifest.shards[n].name for n in stream.shard_numbers if not cache.has(n)]
    require(
        not missing or config.teacher_fallback == "online",
        f"{flag} lacks {len(missing)} of the {len(stream.shard_numbers)} shards that will be read ({missing[:1]}...); "
        f"finish it with launchers/cache_teacher.py, or run the teacher for them with --teacher_fallback online",
    )
    if info.base_dtype != config.train.base_dtype and os.environ.get("RANK", "0") == "0":
        print(
            f"warning: the teacher of {flag} computed in {info.base_dtype}, --train.base_dtype is "
            f"{config.train.base_dtype}",
            file=sys.stderr,
        )
    return CachedTeacher(cache, config.teacher_fallback)


def _check_windows(config: TrainRunConfig, cache: TeacherCache) -> None:
    """Refuses a run that may draw a lossless budget below what the cache covers."""
    budgets, held = config.window.budgets, config.window.least_held
    smallest = (SMALLEST_BUDGET if budgets is None else min(budgets)) + held
    covered = cache.info.positions.min_budget
    drawn = "by default" if budgets is None else f"{budgets}"
    drawn += f" with --window.retained {config.window.retained}" if held else ""
    remedy = f"give --window.budgets of at least {covered - held}, or make a cache with --min_budget {smallest}"
    require(
        cache.covers(smallest),
        f"--teacher_cache {config.teacher_cache} has signals past a lossless budget of {covered} tokens, but "
        f"--window.budgets {drawn} may draw {smallest}; {remedy}",
    )


def check_teacher(config: TrainRunConfig, teacher: CachedTeacher, fingerprint: str) -> None:
    """Refuses signals of another teacher than the base that is trained.

    Args:
        fingerprint: of --model (pipeline/teacher/fingerprint.py).

    Raises:
        UserError: names both.
    """
    info = teacher.cache.info
    require(
        info.teacher_sha256 == fingerprint,
        f"--teacher_cache {config.teacher_cache} is of the teacher {info.teacher_name} (weights and config "
        f"{info.teacher_sha256}), but --model {config.model} is {fingerprint}; name the cache of this base, or make it "
        f"with launchers/cache_teacher.py",
    )
