"""Random access with a check on every read, and an order that is one pure function."""

import os
import threading
from pathlib import Path

import numpy as np
import pytest

from data_prep.manifest import UnitReceipt, complete_folder, sum_up
from data_prep.packing import TokenisedDocument, pack_concat
from data_prep.shard_writer import ShardWriter
from pipeline.data import loader
from pipeline.data.loader import PackedDataset, SampleStream, sample_order
from pipeline.data.shard_format import DataError, Manifest

SEQ_LEN = 16
NUM_TOKENS = 16 * 40 + 5
PINNED_ORDER = [9, 2, 10, 6, 11, 8, 4, 0, 1, 3, 7, 5]


def _write(folder: Path, offset: int = 0) -> Path:
    """One unit: 41 samples over several shards, in which token t of the stream is `offset` + t."""
    folder.mkdir()
    ids = np.arange(NUM_TOKENS, dtype=np.uint32) + offset
    documents = [TokenisedDocument(f"d{i}", {"bytes": 1}, part) for i, part in enumerate(np.array_split(ids, 50))]
    with ShardWriter(folder, 0, 30_000) as writer:
        for pack in pack_concat(documents, SEQ_LEN):
            writer.write(pack)
    planned = Manifest("tiny", "0" * 64, SEQ_LEN, {}, {}, [], [], {"files": {}})
    complete_folder(folder, sum_up(planned, [UnitReceipt(0, writer.entries, {}, 50, 50)]))
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return _write(tmp_path / "data")


def test_every_sample_by_number(folder: Path) -> None:
    dataset = PackedDataset(folder)
    assert len(dataset) == 41 and dataset.num_tokens == NUM_TOKENS and len(dataset.manifest.shards) > 3
    for number in np.random.default_rng(0).permutation(41):
        sample = dataset[int(number)]
        assert sample.key == f"00000-{number:06d}"
        expected = np.arange(number * SEQ_LEN, min(NUM_TOKENS, (number + 1) * SEQ_LEN))
        np.testing.assert_array_equal(sample.input_ids, expected)
    for number in (-1, 41):
        with pytest.raises(IndexError, match=f"sample {number} of"):
            dataset[number]


def test_open_files_are_bounded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "MAX_OPEN_SHARDS", 2)
    dataset = PackedDataset(folder)
    before = len(os.listdir("/proc/self/fd"))
    for number in (*range(41), *reversed(range(41))):
        dataset[number]
    assert len(os.listdir("/proc/self/fd")) == before + 2
    dataset.close()
    assert len(os.listdir("/proc/self/fd")) == before
    assert dataset[40].key == "00000-000040"


def test_threads_share_a_dataset(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "MAX_OPEN_SHARDS", 1)
    dataset = PackedDataset(folder)
    wrong = []

    def read(seed: int) -> None:
        for number in np.random.default_rng(seed).integers(0, 41, 200):
            if dataset[int(number)].input_ids[0] != number * SEQ_LEN:
                wrong.append(number)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not wrong and not any(thread.is_alive() for thread in threads)


def test_damage_in_one_sample_is_found_when_it_is_read_and_only_there(folder: Path) -> None:
    dataset = PackedDataset(folder)
    number, shard = 13, dataset.manifest.shards[1]
    first = dataset.manifest.shards[0].num_samples
    row = np.load(folder / shard.index_name)[number - first]
    path = folder / shard.tar_name
    whole = path.read_bytes()
    for position in np.random.default_rng(0).integers(row["offset"], row["offset"] + row["length"], 20):
        damaged = bytearray(whole)
        damaged[position] ^= 0x10
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=rf"{shard.tar_name}: sample {number - first} of the shard \(number 13 "):
            dataset[number]
        dataset[number - 1], dataset[number + 1]


def test_damage_done_after_the_first_read_is_found(folder: Path) -> None:
    dataset = PackedDataset(folder)
    dataset[0]
    path = folder / dataset.manifest.shards[0].tar_name
    with open(path, "r+b") as file:
        file.truncate(600)
    with pytest.raises(DataError, match=r"number 0 of the folder\) is damaged"):
        dataset[0]


def _remove_mark(folder: Path) -> None:
    (folder / "manifest.json.sha256").unlink()


def _edit_manifest(folder: Path) -> None:
    path = folder / "manifest.json"
    path.write_text(path.read_text().replace('"seq_len": 16', '"seq_len": 17'))


def _remove_shard(folder: Path) -> None:
    (folder / "shard-00000-001.tar").unlink()


def _shorten_shard(folder: Path) -> None:
    os.truncate(folder / "shard-00000-001.tar", 512)


def _remove_index(folder: Path) -> None:
    (folder / "shard-00000-002.idx.npy").unlink()


def _damage_index(folder: Path) -> None:
    path = folder / "shard-00000-002.idx.npy"
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_remove_mark, "is not finished"),
        (_edit_manifest, r"manifest.json does not match manifest.json.sha256"),
        (_remove_shard, "shard-00000-001.tar is missing"),
        (_shorten_shard, "shard-00000-001.tar has 512 bytes, the manifest says"),
        (_remove_index, "shard-00000-002.idx.npy is missing"),
        (_damage_index, "shard-00000-002.idx.npy does not match its sha256"),
    ],
)
def test_faulty_folder_is_refused_when_opened(folder: Path, damage, message: str) -> None:
    damage(folder)
    with pytest.raises(DataError, match=message):
        PackedDataset(folder)


def test_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none does not exist; make one with launchers/prepare.py"):
        PackedDataset(tmp_path / "none")


def test_order_is_a_permutation_that_depends_on_each_argument() -> None:
    order = sample_order(0, 0, 1000, "print")
    assert sorted(order) == list(range(1000)) and order.dtype == np.int64
    np.testing.assert_array_equal(order, sample_order(0, 0, 1000, "print"))
    for other in ((1, 0, 1000, "print"), (0, 1, 1000, "print"), (0, 0, 1000, "other")):
        assert (order != sample_order(*other)).mean() > 0.9


def test_order_is_the_same_for_ever() -> None:
    assert sample_order(7, 3, 12, "abc").tolist() == PINNED_ORDER


def test_first_places_are_uniform() -> None:
    counts = np.bincount([sample_order(seed, 0, 8, "x")[0] for seed in range(4000)], minlength=8)
    assert (np.abs(counts - 500) < 5 * np.sqrt(500)).all()


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 4])
def test_any_number_of_ranks_sees_each_scheduled_sample_once(folder: Path, num_ranks: int) -> None:
    streams = [SampleStream(PackedDataset(folder), seed=5) for _ in range(num_ranks)]
    seen = {g: streams[g % num_ranks].read(g) for g in range(2 * 41)}
    assert all(index == g for g, (index, _) in seen.items())
    epochs = [[seen[g][1].key for g in range(start, start + 41)] for start in (0, 41)]
    assert len(set(epochs[0])) == len(set(epochs[1])) == 41 and epochs[0] != epochs[1]
    order = sample_order(5, 1, 41, streams[0].dataset.fingerprint)
    assert epochs[1] == [f"00000-{number:06d}" for number in order]


def test_fingerprint_names_the_data_and_not_its_place(tmp_path: Path) -> None:
    first, same, other = _write(tmp_path / "a"), _write(tmp_path / "b"), _write(tmp_path / "c", offset=1)
    prints = [PackedDataset(path).fingerprint for path in (first, same, other)]
    assert prints[0] == prints[1] != prints[2]


def test_prefetch_gives_what_read_gives_and_stays_bounded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = SampleStream(PackedDataset(folder), seed=0)
    positions = [3, 50, 4, 4, 81, 0, 7]
    expected = [stream.read(p)[1].key for p in positions]
    asked = []

    def counted():
        for position in positions:
            asked.append(position)
            yield position

    fetched = stream.prefetch(counted(), depth=2)
    keys = [next(fetched)[1].key]
    assert len(asked) <= 3
    keys += [sample.key for _, sample in fetched]
    assert keys == expected


def test_prefetch_raises_at_the_damaged_sample(folder: Path) -> None:
    dataset = PackedDataset(folder)
    stream = SampleStream(dataset, seed=0)
    position = 3
    path = folder / dataset.manifest.shards[-1].tar_name
    while stream.dataset_index(position) < 41 - dataset.manifest.shards[-1].num_samples:
        position += 1
    path.write_bytes(bytes(path.stat().st_size))
    fetched = stream.prefetch(range(position + 5))
    for expected in range(position):
        assert next(fetched)[0] == expected
    with pytest.raises(DataError, match="is damaged"):
        next(fetched)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("prefetch")]


def test_prefetch_that_is_abandoned_ends_its_thread(folder: Path) -> None:
    fetched = SampleStream(PackedDataset(folder), seed=0).prefetch(range(1000))
    next(fetched)
    fetched.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("prefetch")]
