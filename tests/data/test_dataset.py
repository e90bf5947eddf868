"""Random access with a check on every read."""

import io
import json
import os
import pickle
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from data_prep.shard_writer import encode_sample
from pipeline.data import storage
from pipeline.data.dataset import PackedDataset
from pipeline.data.shard_format import DataError, PackedSample, completion_mark
from tests.data.folders import make_folder, make_raw_folder

SEQ_LEN, NUM_SAMPLES = 16, 41


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_folder(tmp_path / "data", {"data": NUM_SAMPLES}, seq_len=SEQ_LEN)


def test_every_sample_by_number(folder: Path) -> None:
    dataset = PackedDataset(folder)
    assert len(dataset) == 41 and dataset.num_tokens == 41 * SEQ_LEN and len(dataset.manifest.shards) > 3
    for number in np.random.default_rng(0).permutation(41):
        sample = dataset[int(number)]
        assert sample.key == f"00000-{number:06d}"
        np.testing.assert_array_equal(sample.input_ids, np.arange(number * SEQ_LEN, (number + 1) * SEQ_LEN))
    for number in (-1, 41):
        with pytest.raises(IndexError, match=f"sample {number} of"):
            dataset[number]


def test_open_files_are_bounded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "MAX_OPEN_SHARDS", 2)
    dataset = PackedDataset(folder)
    before = len(os.listdir("/proc/self/fd"))
    for number in (*range(41), *reversed(range(41))):
        dataset[number]
    assert len(os.listdir("/proc/self/fd")) == before + 2
    dataset.close()
    assert len(os.listdir("/proc/self/fd")) == before
    assert dataset[40].key == "00000-000040"


def test_threads_share_a_dataset(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "MAX_OPEN_SHARDS", 1)
    dataset = PackedDataset(folder)

    def read(seed: int) -> list[bool]:
        numbers = np.random.default_rng(seed).integers(0, 41, 300)
        return [dataset[int(number)].input_ids[0] == number * SEQ_LEN for number in numbers]

    with ThreadPoolExecutor(4) as threads:
        assert all(all(right) for right in threads.map(read, range(4), timeout=60))


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


def _rewrite_manifest(folder: Path, content: dict) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps(content))
    (folder / "manifest.json.sha256").write_bytes(completion_mark(path.read_bytes()))


def _rename_shard_in_the_manifest(folder: Path) -> None:
    content = json.loads((folder / "manifest.json").read_bytes())
    content["shards"][1]["name"] = "../secret"
    _rewrite_manifest(folder, content)


def _forget_a_source(folder: Path) -> None:
    _rewrite_manifest(folder, json.loads((folder / "manifest.json").read_bytes()) | {"sources": []})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_remove_mark, "is not finished"),
        (_edit_manifest, r"manifest.json does not match manifest.json.sha256"),
        (_remove_shard, "shard-00000-001.tar is missing"),
        (_shorten_shard, "shard-00000-001.tar has 512 bytes, the manifest says"),
        (_remove_index, "shard-00000-002.idx.npy is missing"),
        (_damage_index, "shard-00000-002.idx.npy does not match its sha256"),
        (_forget_a_source, "manifest.json lists shard-00000-000 of the source 'data', which it does not describe"),
        (_rename_shard_in_the_manifest, r"manifest.json lists a shard '\.\./secret'"),
    ],
)
def test_faulty_folder_is_refused_when_opened(folder: Path, damage, message: str) -> None:
    damage(folder)
    with pytest.raises(DataError, match=message):
        PackedDataset(folder)


def test_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none does not exist; make one with launchers/prepare.py"):
        PackedDataset(tmp_path / "none")


def test_fingerprint_names_the_data_and_not_its_place(tmp_path: Path) -> None:
    folders = [
        make_folder(tmp_path / name, {"data": 3}, first_token=first)
        for name, first in zip("abc", (0, 0, 1), strict=True)
    ]
    prints = [PackedDataset(path).fingerprint for path in folders]
    assert prints[0] == prints[1] != prints[2]


def _sample(key: str = "00000-000000") -> PackedSample:
    ids, bounds = np.array([7, 8, 9], np.uint32), np.array([0, 3], np.int32)
    return PackedSample(key, ids, bounds, None, {"documents": [{"id": "a"}]})


def _tar_members(edit) -> bytes:
    """The sample's members written again by tarfile after `edit(info, content)`, which returns the new content."""
    out = io.BytesIO()
    with tarfile.open(fileobj=io.BytesIO(encode_sample(_sample()))) as source:
        for info in source:
            content = edit(info, source.extractfile(info).read())
            info.size = len(content)
            out.write(info.tobuf(tarfile.USTAR_FORMAT) + content + bytes(-len(content) % 512))
    return out.getvalue()


def _escaping_path(info: tarfile.TarInfo, content: bytes) -> bytes:
    info.name = f"../../{info.name}"
    return content


def _absolute_path(info: tarfile.TarInfo, content: bytes) -> bytes:
    info.name = f"/etc/{info.name}"
    return content


def _symbolic_link(info: tarfile.TarInfo, content: bytes) -> bytes:
    if info.name.endswith("meta.json"):
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
    return content


def _hard_link_with_the_sum_of_a_file(info: tarfile.TarInfo, content: bytes) -> bytes:
    if info.name.endswith("meta.json"):
        info.type, info.linkname, info.mode = tarfile.LNKTYPE, "", 0o643
    return content


class _Payload:
    """Leaves a file behind if it is ever unpickled."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple:
        return Path.touch, (self.witness,)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (_escaping_path, r"not a packed sample \(member '../../00000-000000.input_ids.npy' has no name of"),
        (_absolute_path, r"not a packed sample \(member '/etc/00000-000000.input_ids.npy' has no name of"),
        (_symbolic_link, r"not a packed sample \(no header of a plain file at its byte \d+: '00000-000000.meta.json'"),
        (_hard_link_with_the_sum_of_a_file, "no header of a plain file at its byte"),
    ],
)
def test_a_tar_that_reaches_out_of_its_folder_is_refused_when_it_is_read(tmp_path: Path, edit, message: str) -> None:
    dataset = PackedDataset(make_raw_folder(tmp_path / "data", _tar_members(edit)))
    with pytest.raises(DataError, match=rf"shard-00000-000.tar: sample 0 of the shard.*{message}"):
        dataset[0]


def test_a_pickle_in_an_npy_is_refused_and_not_loaded(tmp_path: Path) -> None:
    def pickled(info: tarfile.TarInfo, content: bytes) -> bytes:
        if not info.name.endswith("input_ids.npy"):
            return content
        buffer = io.BytesIO()
        np.lib.format.write_array(buffer, np.array([_Payload(tmp_path / "harmed")] * 3, object), version=(1, 0))
        return buffer.getvalue()

    raw = _tar_members(pickled)
    pickle.loads(raw[raw.index(b"\x80") :])  # it works: this is the harm that must not happen
    (tmp_path / "harmed").unlink()
    dataset = PackedDataset(make_raw_folder(tmp_path / "data", raw))
    with pytest.raises(DataError, match=r"shard-00000-000.tar: sample 0 .*pickled objects are never loaded"):
        dataset[0]
    assert not (tmp_path / "harmed").exists()
