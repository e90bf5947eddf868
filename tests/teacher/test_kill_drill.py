"""Thirty SIGKILLs of the teacher job at random instants: the cache ends as if nothing had happened."""

import random
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.data.dataset import PackedDataset
from pipeline.teacher.cache_listing import LISTING_DIGEST_NAME
from pipeline.teacher.verify import verify_cache
from tests.distributed.processes import run
from tests.drill import REPOSITORY, record
from tests.killing import elapsed, kill_when
from tests.teacher.cache_folders import content
from tests.teacher.capture_inputs import make_data, make_teacher

NUM_KILLS = 30
TORCHRUN = str(Path(sys.executable).with_name("torchrun"))
WAYS = {  # command and how often it is started at once
    "one process": ([sys.executable], 1),
    "two torchrun ranks": ([TORCHRUN, "--standalone", "--nproc_per_node", "2", "--"], 1),
    "three independent processes": ([sys.executable], 3),
}
GRACE = 120  # seconds in which what is left after one process was killed goes on to its end


def commands(way: str, flags: list[str], cache: Path) -> list[list[str]]:
    before, times = WAYS[way]
    return [[*before, str(REPOSITORY / "launchers/cache_teacher.py"), *flags, "--output", str(cache)]] * times


def count_shards(cache: Path) -> int:
    return len(list(cache.glob("*.idx.npy")))


def choose_instant(rng: random.Random, cache: Path, num_shards: int, most: float) -> Callable[[], bool]:
    """One kill in five within `most` seconds, so often while programs start; the others while shards are written."""
    if rng.random() < 0.2:
        return elapsed(rng.uniform(0.2, most))
    target = rng.randint(min(count_shards(cache) + 1, num_shards), num_shards)
    return lambda: count_shards(cache) >= target


@pytest.mark.drill
@pytest.mark.timeout(3600)
def test_thirty_kills(tmp_path: Path) -> None:
    seed = random.randrange(1 << 32)
    rng = random.Random(seed)
    print(f"seed {seed}")
    make_data(tmp_path / "data", make_teacher(tmp_path / "teacher"), repeats=200)
    dataset = PackedDataset(tmp_path / "data")
    num_shards = len(dataset.manifest.shards)
    flags = ["--model", str(tmp_path / "teacher"), "--data", str(tmp_path / "data"), "--signal", "sampled"]
    uninterrupted = run(commands("one process", flags, tmp_path / "whole")[0], tmp_path / "log")
    assert uninterrupted.returncode == 0, uninterrupted.output
    whole, began, caches = content(tmp_path / "whole"), time.monotonic(), 0
    kills, shards_when_killed, completed_by_rest = dict.fromkeys(WAYS, 0), [], []
    while sum(kills.values()) < NUM_KILLS:
        cache = tmp_path / f"cache{caches}"
        caches += 1
        for _ in range(rng.randint(2, 5)):
            if (cache / LISTING_DIGEST_NAME).is_file():  # what was left of a killed run completed it
                break
            way = min(kills, key=lambda w: (kills[w], rng.random()))
            only_one = rng if rng.random() < 0.4 else None
            due = choose_instant(rng, cache, num_shards, uninterrupted.seconds)
            if kill_when(due, commands(way, flags, cache), only_one, GRACE):
                kills[way] += 1
                if only_one is None:
                    shards_when_killed.append(count_shards(cache))
                else:
                    completed_by_rest.append((cache / LISTING_DIGEST_NAME).is_file())
        (last,) = commands(rng.choice(["one process", "two torchrun ranks"]), flags, cache)
        finish = run(last, tmp_path / "log")
        assert finish.returncode == 0, finish.output
        assert content(cache) == whole
        verify_cache(cache, dataset)
    record(
        "cache_kills",
        {
            "seed": seed,
            "kills": kills,
            "of_a_single_process": len(completed_by_rest),
            "after_which_the_rest_completed_the_cache": sum(completed_by_rest),
            "caches": caches,
            "shards": num_shards,
            "shards_when_all_were_killed": sorted(shards_when_killed),
            "identical_and_verified": True,
            "seconds": round(time.monotonic() - began),
        },
    )
