"""The stream of samples: one global order, read ahead by threads."""

import threading
import time
from pathlib import Path

import pytest

from pipeline.data.loader import PackedDataset, SampleStream, Shuffle
from pipeline.data.order import sample_order
from pipeline.data.shard_format import DataError
from tests.data.folders import make_folder

NUM_SAMPLES = 41


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_folder(tmp_path / "data", {"data": NUM_SAMPLES})


def prefetch_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("prefetch")]


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 4])
def test_any_number_of_ranks_sees_each_scheduled_sample_once(folder: Path, num_ranks: int) -> None:
    streams = [SampleStream(PackedDataset(folder), seed=5) for _ in range(num_ranks)]
    seen = {g: streams[g % num_ranks].read(g) for g in range(2 * 41)}
    assert all(index == g for g, (index, _) in seen.items())
    epochs = [[seen[g][1].key for g in range(start, start + 41)] for start in (0, 41)]
    assert len(set(epochs[0])) == len(set(epochs[1])) == 41 and epochs[0] != epochs[1]
    order = sample_order(5, 1, 41, streams[0].dataset.fingerprint)
    assert epochs[1] == [f"00000-{number:06d}" for number in order]


def test_the_manifests_weights_decide_unless_others_are_given(tmp_path: Path) -> None:
    weights = {"books": 3.0, "code": 1.0}
    dataset = PackedDataset(make_folder(tmp_path / "data", {"books": 10, "code": 30}, weights=weights))
    for mixture, share in ((None, 30), ({"books": 1.0, "code": 3.0}, 10), ({"code": 1.0}, 0)):
        stream = SampleStream(dataset, 0, mixture, Shuffle("block", 1))
        assert sum(stream.dataset_index(i) < 10 for i in range(40)) == share


@pytest.mark.parametrize("num_workers", [1, 2, 5])
def test_prefetch_gives_what_read_gives_and_stays_bounded(folder: Path, num_workers: int) -> None:
    stream = SampleStream(PackedDataset(folder), seed=0)
    positions = [3, 50, 4, 4, 81, 0, 7]
    expected = [stream.read(p)[1].key for p in positions]
    asked = []

    def counted():
        for position in positions:
            asked.append(position)
            yield position

    fetched = stream.prefetch(counted(), depth=2, num_workers=num_workers)
    keys = [next(fetched)[1].key]
    assert len(asked) <= 3
    keys += [sample.key for _, sample in fetched]
    assert keys == expected


@pytest.mark.parametrize("num_workers", [1, 3])
def test_prefetch_raises_at_the_damaged_sample(folder: Path, num_workers: int) -> None:
    dataset = PackedDataset(folder)
    stream, shard = SampleStream(dataset, seed=1), len(dataset.manifest.shards) - 1
    path = folder / dataset.manifest.shards[shard].tar_name
    path.write_bytes(bytes(path.stat().st_size))
    position = next(p for p in range(41) if dataset.shard_of(stream.dataset_index(p)) == shard)
    assert position > 0
    fetched = stream.prefetch(range(position + 5), num_workers=num_workers)
    for expected in range(position):
        assert next(fetched)[0] == expected
    with pytest.raises(DataError, match=rf"{path.name}: sample \d+ of the shard .* is damaged"):
        next(fetched)
    assert not prefetch_threads()


def test_the_first_batch_of_ten_thousand_samples_comes_within_a_second_of_opening(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "data", {"data": 10_000}, shard_bytes=4 << 20)
    start = time.perf_counter()
    fetched = SampleStream(PackedDataset(folder), seed=0).prefetch(range(10_000), depth=8)
    batch = [next(fetched) for _ in range(8)]
    assert len(batch) == 8 and time.perf_counter() - start < 1


def test_prefetch_that_is_abandoned_ends_its_threads(folder: Path) -> None:
    fetched = SampleStream(PackedDataset(folder), seed=0).prefetch(range(1000), num_workers=3)
    next(fetched)
    assert prefetch_threads()
    fetched.close()
    assert not prefetch_threads()
