"""Checks a teacher cache: `python -m pipeline.teacher.verify CACHE [--data DIR]` reads every byte of it.

With `--data` it compares every sample's key and positions with those that the data and the settings give. With
`--sample N` it reads the frame, every index and N samples spread over the cache: seconds, however large the cache is.
Exits 0 and prints what is there when all is well and the cache is finished, 1 with one line that names the first fault
otherwise.
"""

import argparse
import hashlib
import os
import secrets
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from pipeline.data.dataset import PackedDataset
from pipeline.data.shard_format import DataError
from pipeline.data.shard_io import END_OF_TAR
from pipeline.exit_codes import run_tool
from pipeline.flags import ToolParser
from pipeline.teacher.cache_checks import CachedShard, OpenedCache, load_checked_index, open_cache, read_checked_sample
from pipeline.teacher.cache_later_masses import are_written, read_later_masses
from pipeline.teacher.cache_listing import LISTING_DIGEST_NAME, LISTING_NAME


@dataclass(frozen=True)
class Counts:
    """What a check has found: of the cache, and how much of it was read."""

    num_samples: int
    num_positions: int
    num_read: int


def verify_cache(
    folder: Path, dataset: PackedDataset | None = None, num_samples: int | None = None, seed: int = 0
) -> tuple[OpenedCache, Counts]:
    """Reads the whole cache, or with `num_samples` so many samples (at most all), one of each equal stretch.

    Args:
        folder: the cache.
        dataset: its data, to compare keys and positions with.
        num_samples: None: every byte.
        seed: which samples.

    Raises:
        DataError: the first fault found; that the cache is not finished is named last.
    """
    cache = open_cache(folder, dataset)
    indexes = [load_checked_index(cache, shard, dataset) for shard in cache.shards]
    total = sum(map(len, indexes))
    chosen = np.arange(total) if num_samples is None else _spread(total, num_samples, seed)
    num_bytes = sum(int(index["length"].sum()) for index in indexes) * len(chosen) // max(total, 1)
    with tqdm(total=num_bytes, desc="verifying", unit="B", unit_scale=True, disable=None) as progress:
        first = 0
        for shard, index in zip(cache.shards, indexes, strict=True):
            numbers = chosen[(chosen >= first) & (chosen < first + len(index))] - first
            _check_shard(cache, shard, index, numbers, dataset, progress)
            first += len(index)
    if cache.info.later_mass_samples and (cache.is_finished or are_written(folder)):
        read_later_masses(folder, cache.info)
    if not cache.is_finished:
        of = "" if cache.num_due is None else f" of {cache.num_due}"
        raise DataError(
            f"{folder} is not finished: {LISTING_DIGEST_NAME}, written last, is missing; its {len(cache.shards)}{of} "
            f"shards are all well; run launchers/cache_teacher.py on it again"
        )
    return cache, Counts(total, sum(int(index["tokens"].sum()) for index in indexes), len(chosen))


def _spread(total: int, num_samples: int, seed: int) -> np.ndarray:
    """Ascending sample numbers, int64 [min(num_samples, total)], one at random from each equal stretch."""
    num_samples = min(num_samples, total)
    bounds = np.arange(num_samples + 1) * total // max(num_samples, 1)
    return np.random.default_rng(seed).integers(bounds[:-1], bounds[1:])


def _check_shard(
    cache: OpenedCache,
    shard: CachedShard,
    index: np.ndarray,
    numbers: np.ndarray,
    dataset: PackedDataset | None,
    progress: tqdm,
) -> None:
    """The samples `numbers` of the shard, its last bytes, and its digest where all samples were read."""
    path, digest, keys = cache.folder / f"{shard.name}.tar", hashlib.sha256(), set()
    for number in numbers.tolist():
        raw, key = read_checked_sample(cache, shard, number, index[number], dataset)
        if key in keys:
            raise DataError(f"{path}: sample {number} has the key {key} of an earlier one")
        keys.add(key)
        digest.update(raw)
        progress.update(len(raw))
    with open(path, "rb") as file:
        file.seek(-len(END_OF_TAR), os.SEEK_END)
        rest = file.read()
    if rest != END_OF_TAR:
        raise DataError(f"{path} does not end after its last sample")
    digest.update(rest)
    if shard.listed is not None and len(numbers) == len(index) and digest.hexdigest() != shard.listed.sha256:
        raise DataError(f"{path} does not match its sha256 in {LISTING_NAME}")


def _parse(argv: list[str] | None) -> argparse.Namespace:
    summary, *rest = (__doc__ or "").split("\n\n")
    parser = ToolParser("pipeline.teacher.verify", summary, "\n\n".join(rest))
    parser.add_argument("folder", type=Path, metavar="CACHE", help="teacher cache")
    parser.add_argument("--data", metavar="DIR", help="packed data folder (or URL) that the cache was made of")
    parser.add_argument("--sample", type=int, metavar="N", help="read only N samples, spread over the cache")
    parser.add_argument("--seed", type=int, metavar="S", help="which samples (default: others each time)")
    arguments = parser.parse_args(argv)
    if arguments.sample is not None and arguments.sample < 1:
        parser.error(f"--sample: must be >= 1, found {arguments.sample}")
    if arguments.seed is not None and (arguments.sample is None or arguments.seed < 0):
        parser.error(f"--seed: goes with --sample and must be >= 0, found {arguments.seed}")
    return arguments


def _verify(arguments: argparse.Namespace) -> None:
    dataset = None if arguments.data is None else PackedDataset(arguments.data)
    seed = secrets.randbits(31) if arguments.seed is None else arguments.seed
    cache, counts = verify_cache(arguments.folder, dataset, arguments.sample, seed)
    notes = f"{counts.num_samples:,} samples, {counts.num_positions:,} positions in {len(cache.shards)} shards, "
    notes += f"signal {cache.info.signal.kind}, positions {cache.info.positions}, compression {cache.info.compression}"
    if cache.info.later_mass_samples:
        notes += f", later masses of {cache.info.later_mass_samples} samples"
    if dataset is None:
        notes += "; not compared with the data (--data)"
    if arguments.sample is not None:
        notes += (
            f"; all sizes and indexes, but the content of {counts.num_read:,} of {counts.num_samples:,} samples only "
            f"(--seed {seed})"
        )
    print(f"{arguments.folder}: all well: {notes}")


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    arguments = _parse(argv)
    return run_tool(lambda: _verify(arguments))


if __name__ == "__main__":
    sys.exit(main())
