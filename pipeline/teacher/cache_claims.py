"""Hands out a cache's missing shards to any set of processes, so that no two work on one at the same time.

A claim is a lock on a file of its own, which the kernel gives back when its process ends, however it ends. Processes
need know nothing of each other: ranks of one job, jobs of an array, several nodes on a shared file system. Where the
file system has no locks, rank r of n takes the shards whose number in the data is r modulo n.
"""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from pipeline.data.shard_format import Manifest, ShardEntry
from pipeline.folder_claim import Lock, take_lock
from pipeline.teacher.cache_format import WORK_FOLDER
from pipeline.teacher.cache_listing import LISTING_DIGEST_NAME, is_complete


@contextlib.contextmanager
def claim(folder: Path, shard: str, wait: bool = False) -> Iterator[Lock]:
    """Holds the claim on the shard of that name while the context lasts, if it is OURS.

    Args:
        folder: the cache.
        shard: name of the shard, or of anything else that one process at a time may do.
        wait: until it is free, instead of TAKEN.
    """
    descriptor = _open(folder / WORK_FOLDER / f"{shard}.lock")
    try:
        state = take_lock(descriptor, wait)
        try:
            yield state
        finally:
            if state is Lock.OURS:
                fcntl.flock(descriptor, fcntl.LOCK_UN)  # a forked child may have a copy of the descriptor
    finally:
        os.close(descriptor)


def _open(path: Path) -> int:
    while True:
        path.parent.mkdir(exist_ok=True)
        try:
            return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except FileNotFoundError:  # who finished the cache removed the folder in between
            continue


def missing_shards(folder: Path, manifest: Manifest) -> list[ShardEntry]:
    """The shards of the data (entries of its manifest) that the cache does not have yet, in order."""
    return [entry for entry in manifest.shards if not is_complete(folder, entry.name)]


def claimed_shards(folder: Path, manifest: Manifest, rank: int = 0, num_ranks: int = 1) -> Iterator[ShardEntry]:
    """Each missing shard of the data that nobody else works on; ours until the next one is asked for.

    One pass. A shard that another process had is not waited for: it is finished when that process is, or missing still
    if it died.

    Args:
        folder: the cache.
        manifest: of the data.
        rank: where to begin, so that processes seldom ask for the same; without locks the shards that are ours.
        num_ranks: processes that `rank` counts.
    """
    shards = list(enumerate(manifest.shards))
    start = rank * len(shards) // num_ranks
    for number, entry in shards[start:] + shards[:start]:
        if is_complete(folder, entry.name) or (folder / LISTING_DIGEST_NAME).is_file():
            continue
        with claim(folder, entry.name) as state:
            ours = state is Lock.OURS or (state is Lock.UNSUPPORTED and number % num_ranks == rank)
            # Looked at again: who had the lock before may have finished the shard.
            if ours and not is_complete(folder, entry.name):
                yield entry
