"""The order in which training reads a data folder: a pure function of (seed, epoch, data, mixture, shuffle mode).

Nothing here has a state that must be saved. An epoch has N slots, N the samples of the folder. Without a mixture the
epoch is one permutation of the folder. With one, each source gets its share of the slots, scattered over the epoch at
random, and its k-th slot, counted over all epochs, reads sample k mod n of its permutation number k div n: every
source is read evenly, whatever its share.
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np

from pipeline.data.shard_format import DataError, Manifest


@dataclass(frozen=True)
class Shuffle:
    """`full`: any sample may follow any other. `block`: shards are permuted, and samples within groups of
    `block_shards` consecutive shards of that permutation, so that only so many shards of a source are in use at a time.
    """

    mode: Literal["full", "block"] = "full"
    block_shards: int = 16


def sample_order(seed: int, epoch: int, num_samples: int, fingerprint: str) -> np.ndarray:
    """The permutation of one epoch, int64 [num_samples].

    A pure function of its arguments that stays the same across numpy versions: it sorts the raw output of the
    Philox bit generator (whose stream numpy guarantees, unlike that of Generator.permutation), keyed by a
    hash of (seed, epoch, fingerprint); the stable sort settles ties.
    """
    digest = hashlib.sha256(f"{seed}/{epoch}/{fingerprint}".encode()).digest()
    keys = np.random.Philox(key=int.from_bytes(digest[:16], "little")).random_raw(num_samples)
    return np.argsort(keys, kind="stable").astype(np.int64)


def resolve_mixture(manifest: Manifest, override: Mapping[str, float] | None = None) -> dict[str, float] | None:
    """Weight of each source that is read, or None: every sample once an epoch.

    Args:
        manifest: its weights count where `override` is None.
        override: --train.mixture; sources that it does not name are not read.

    Raises:
        DataError: a name that the folder does not have, a weight that is not above 0, a source without samples, or
            weights for only some of the manifest's sources.
    """
    sizes = {source["name"]: 0 for source in manifest.sources}
    for entry in manifest.shards:
        sizes[entry.source] += entry.num_samples
    weights, flag = override, "--train.mixture"
    if weights is None:
        weights, flag = {source["name"]: source["weight"] for source in manifest.sources}, "the data's manifest"
        if all(weight is None for weight in weights.values()):
            return None
    for name, weight in weights.items():
        if name not in sizes:
            raise DataError(f"{flag} names the source {name!r}; the data has {', '.join(sizes)}")
        if weight is None or not 0 < weight < math.inf:
            raise DataError(f"{flag} gives the source {name!r} the weight {weight}; it must be finite and above 0")
        if sizes[name] == 0:
            raise DataError(f"{flag} gives a weight to the source {name!r}, of which the data has no sample")
    if not weights:
        raise DataError(f"{flag} names no source; the data has {', '.join(sizes)}")
    return dict(weights)


def share_slots(weights: Mapping[str, float], num_slots: int) -> dict[str, int]:
    """Slots of an epoch by source: largest remainders of weight x slots, which add up to `num_slots`.

    Raises:
        DataError: a source whose share is not a single slot.
    """
    total = math.fsum(weights.values())
    exact = {name: weights[name] / total * num_slots for name in sorted(weights)}  # their order must not matter
    slots = {name: int(share) for name, share in exact.items()}
    by_remainder = sorted(exact, key=lambda name: slots[name] - exact[name])
    for name in by_remainder[: num_slots - sum(slots.values())]:
        slots[name] += 1
    for name, count in slots.items():
        if count == 0:
            raise DataError(
                f"the mixture gives {name!r} none of the epoch's {num_slots} samples (weight {weights[name]} of "
                f"{total}): raise its weight or leave it out"
            )
    return slots


@dataclass(frozen=True)
class _Walk:
    """One source's samples, permutation after permutation: `starts` and `counts` of its shards, int64 [num_shards]."""

    seed: int
    fingerprint: str
    shuffle: Shuffle
    starts: np.ndarray
    counts: np.ndarray
    num_slots: int  # in an epoch

    def epoch(self, epoch: int) -> np.ndarray:
        """The samples of the epoch's slots, int64 [num_slots]."""
        num_samples = int(self.counts.sum())
        first_pass, offset = divmod(epoch * self.num_slots, num_samples)
        num_passes = -(-(offset + self.num_slots) // num_samples)
        joined = np.concatenate([self._permutation(first_pass + number) for number in range(num_passes)])
        return joined[offset : offset + self.num_slots]

    @property
    def group_shards(self) -> int:
        """Shards whose samples are mixed with each other."""
        return min(self.shuffle.block_shards, len(self.starts)) if self.shuffle.mode == "block" else len(self.starts)

    def _permutation(self, number: int) -> np.ndarray:
        if self.shuffle.mode == "full":
            groups = [np.arange(len(self.starts))]
        else:
            shards = sample_order(self.seed, number, len(self.starts), f"{self.fingerprint}/shards")
            groups = np.split(shards, range(self.group_shards, len(shards), self.group_shards))
        return np.concatenate([self._shuffled(number, place, group) for place, group in enumerate(groups)])

    def _shuffled(self, number: int, place: int, group: np.ndarray) -> np.ndarray:
        counts = self.counts[group]
        shifts = self.starts[group] - np.concatenate([[0], np.cumsum(counts)[:-1]])
        members = np.arange(counts.sum()) + np.repeat(shifts, counts)
        suffix = "" if self.shuffle.mode == "full" else f"/group-{place}"
        return members[sample_order(self.seed, number, len(members), self.fingerprint + suffix)]


class SampleOrder:
    """Which sample of a folder each global index stands for, epoch after epoch without end.

    Args:
        manifest: of the folder; must hold at least one sample.
        seed: together with the fingerprint it decides the order.
        mixture: weight of each source to read (`resolve_mixture`), or None.
        shuffle: how far apart neighbours may lie.

    Attributes:
        num_slots: samples in an epoch.
        fingerprint: names data, mixture and shuffle mode: equal ones give equal orders for equal seeds.

    Raises:
        DataError: the mixture gives a source no slot.
    """

    def __init__(
        self, manifest: Manifest, seed: int, mixture: Mapping[str, float] | None = None, shuffle: Shuffle | None = None
    ) -> None:
        shuffle = shuffle or Shuffle()
        self.num_slots = sum(entry.num_samples for entry in manifest.shards)
        slots = None if mixture is None else share_slots(mixture, self.num_slots)
        self.fingerprint = _fingerprint(manifest, slots, shuffle)
        self._seed = seed
        counts = np.array([entry.num_samples for entry in manifest.shards], np.int64)
        starts = np.cumsum(counts) - counts
        self._walks = []
        if slots is None:
            self._walks.append(_Walk(seed, self.fingerprint, shuffle, starts, counts, self.num_slots))
        for name, num_slots in (slots or {}).items():
            own = [entry.source == name for entry in manifest.shards]
            self._walks.append(_Walk(seed, f"{self.fingerprint}/{name}", shuffle, starts[own], counts[own], num_slots))
        # Two, because a batch may span the end of an epoch.
        self._epoch = lru_cache(maxsize=2)(self._compute_epoch)

    def dataset_index(self, global_index: int) -> int:
        """Which sample of the folder the `global_index`-th consumed sample (0-based) is."""
        epoch, slot = divmod(global_index, self.num_slots)
        return int(self._epoch(epoch)[slot])

    @property
    def max_shards_in_use(self) -> int:
        """Shards of which samples lie within `group_slots` of each other."""
        return sum(2 * walk.group_shards for walk in self._walks)

    @property
    def group_slots(self) -> int:
        """Slots in which the fastest source passes through one group of its shards."""
        return min(
            int(walk.counts.sum() * walk.group_shards / len(walk.counts) * self.num_slots / walk.num_slots)
            for walk in self._walks
        )

    def _compute_epoch(self, epoch: int) -> np.ndarray:
        parts = [walk.epoch(epoch) for walk in self._walks]
        if len(parts) == 1:
            return parts[0]
        owners = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
        owners = owners[sample_order(self._seed, epoch, self.num_slots, f"{self.fingerprint}/slots")]
        order = np.empty(self.num_slots, np.int64)
        for number, part in enumerate(parts):
            order[owners == number] = part
        return order


def _fingerprint(manifest: Manifest, slots: Mapping[str, int] | None, shuffle: Shuffle) -> str:
    if slots is None and shuffle.mode == "full":
        return manifest.sha256
    blocks = shuffle.block_shards if shuffle.mode == "block" else None
    facts: Sequence[object] = (manifest.sha256, slots and sorted(slots.items()), blocks)
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()
