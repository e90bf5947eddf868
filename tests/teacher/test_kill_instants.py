"""The real launcher, killed at one named instant after the other on the same cache, which still ends as if never."""

import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.data.dataset import PackedDataset
from pipeline.data.shard_format import DataError
from pipeline.teacher.cache import TeacherCache
from pipeline.teacher.verify import verify_cache
from tests.distributed.processes import environment
from tests.teacher.cache_folders import content
from tests.teacher.capture_inputs import make_data, make_teacher

REPOSITORY = Path(__file__).resolve().parents[2]
LAUNCHER = REPOSITORY / "launchers" / "cache_teacher.py"
KILLED_RUN = REPOSITORY / "tests" / "killed_run.py"
INSTANTS = [  # function, call, and how many shards there are when it would have been called; None: all
    ("pipeline.teacher.cache_writer:CacheShardWriter.write", 8, 2),  # mid-shard: each has 3 samples
    ("pipeline.data.shard_io:OpenShard.publish", 2, 3),  # before the rename of the second shard of this run
    ("pipeline.teacher.cache_writer:seal", 1, None),  # before run.json and shards.json
    ("pipeline.teacher.cache_writer:listing_mark", 1, None),  # between shards.json and the mark
]


def run(*command: object) -> subprocess.CompletedProcess[str]:
    parts = [sys.executable, *map(str, command)]
    return subprocess.run(parts, capture_output=True, text=True, timeout=120, env=environment())


@pytest.mark.drill
def test_killed_at_named_instants(tmp_path: Path) -> None:
    teacher, cache = make_teacher(tmp_path / "teacher"), tmp_path / "cache"
    dataset = PackedDataset(make_data(tmp_path / "data", teacher, repeats=3))
    num_shards = len(dataset.manifest.shards)
    flags = ["--model", teacher, "--data", tmp_path / "data", "--signal", "sampled", "--output"]
    assert run(LAUNCHER, *flags, cache).returncode == 0
    whole = content(cache)
    shutil.rmtree(cache)
    for function, number, num_complete in INSTANTS:
        killed = run(KILLED_RUN, LAUNCHER, function, number, *flags, cache)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        num_missing = 0 if num_complete is None else num_shards - num_complete
        assert len(TeacherCache(cache, dataset).missing) == num_missing, function
        with pytest.raises(DataError):  # not finished, or with what only a running job needs
            verify_cache(cache, dataset)
    done = run(LAUNCHER, *flags, cache)
    assert done.returncode == 0 and "wrote 0 shards" in done.stdout, done.stderr
    assert content(cache) == whole
    verify_cache(cache, dataset)
