"""`python -m data_prep.verify` finds every kind of fault, and names it."""

import hashlib
import io
import json
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data_prep.manifest import UnitReceipt, complete_folder, sum_up
from data_prep.packing import Pack
from data_prep.shard_writer import ShardWriter
from data_prep.verify import main, verify_folder
from pipeline.data.shard_format import DataError, Manifest

Edit = Callable[[Manifest], None]


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two units of small samples; the first has two shards."""
    folder = tmp_path_factory.mktemp("packed")
    _write(folder, {0: [_pack(n) for n in range(9)], 1: [_pack(n) for n in range(3)]})
    (folder / "run.json").write_text("{}")
    return folder


@pytest.fixture
def folder(packed: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return shutil.copytree(packed, tmp_path / "packed")


def _pack(number: int, **changes: object) -> Pack:
    """Two whole documents of 5 and 3 tokens."""
    names = ((f"a{number}", 0, 5), (f"b{number}", 0, 3))
    entries = [{"id": i, "start": s, "end": e, "tokens": e, "origin": {"bytes": 9}} for i, s, e in names]
    fields = {
        "input_ids": np.arange(8, dtype=np.uint32) + number,
        "cu_seqlens": np.array([0, 5, 8], np.int32),
        "documents": entries,
    }
    return Pack(**fields | changes)


def _write(folder: Path, units: dict[int, list[Pack]], shard_bytes: int = 25_000) -> Manifest:
    receipts = []
    for unit, packs in units.items():
        with ShardWriter(folder, unit, shard_bytes) as writer:
            for pack in packs:
                writer.write(pack)
        receipts.append(UnitReceipt(unit, writer.entries, {}, 2 * len(packs), 18 * len(packs)))
    planned = Manifest("tiny", "0" * 64, 8, {"method": "concat"}, {}, [], [], {"files": {}})
    manifest = sum_up(planned, receipts)
    complete_folder(folder, manifest)
    return manifest


def _edit_manifest(folder: Path, edit: Edit) -> None:
    """Changes the manifest and completes the folder anew, so that only the change itself is wrong."""
    manifest = Manifest.load(folder)
    edit(manifest)
    complete_folder(folder, manifest)


def _edit_index(folder: Path, edit: Callable[[np.ndarray], None]) -> None:
    """Changes the first shard's index and puts its new digest into the manifest."""
    path = folder / "shard-00000-000.idx.npy"
    index = np.load(path)
    edit(index)
    buffer = io.BytesIO()
    np.save(buffer, index)
    path.write_bytes(buffer.getvalue())
    digest = hashlib.sha256(buffer.getvalue()).hexdigest()

    def relist(manifest: Manifest) -> None:
        manifest.shards[0] = replace(manifest.shards[0], index_sha256=digest)

    _edit_manifest(folder, relist)


def test_whole_folder_passes_and_its_totals_are_printed(packed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert len(Manifest.load(packed).shards) == 3
    assert main([str(packed)]) == 0
    assert "all well: 12 samples, 96 tokens, 24 documents in 3 shards" in capsys.readouterr().out


def test_any_flipped_bit_of_any_file_is_found(folder: Path) -> None:
    rng = random.Random(0)
    files = [path for path in sorted(folder.iterdir()) if path.name != "run.json"]
    assert len(files) == 8
    for path in files:
        whole = path.read_bytes()
        ends = {0, len(whole) - 1}
        for position in ends | {rng.randrange(len(whole)) for _ in range(30)}:
            damaged = bytearray(whole)
            damaged[position] ^= 1 << rng.randrange(8)
            path.write_bytes(damaged)
            with pytest.raises(DataError, match=path.name.removesuffix(".sha256")):
                verify_folder(folder)
        path.write_bytes(whole)
    verify_folder(folder)


@pytest.mark.parametrize("change", [lambda raw: raw[:-1], lambda raw: raw + b"\0", lambda raw: b""])
def test_any_file_too_short_or_too_long_is_found(folder: Path, change: Callable[[bytes], bytes]) -> None:
    for path in sorted(folder.iterdir()):
        if path.name != "run.json":
            whole = path.read_bytes()
            path.write_bytes(change(whole))
            with pytest.raises(DataError):
                verify_folder(folder)
            path.write_bytes(whole)


def test_missing_and_unlisted_files_are_named(folder: Path) -> None:
    for path in sorted(folder.iterdir()):
        whole = path.read_bytes()
        path.unlink()
        with pytest.raises(DataError, match=path.name):
            verify_folder(folder)
        path.write_bytes(whole)
    (folder / "shard-00002-000.tar.tmp").touch()
    with pytest.raises(DataError, match=r"shard-00002-000.tar.tmp is not listed in manifest.json"):
        verify_folder(folder)


def _swap_rows(index: np.ndarray) -> None:
    index[[0, 1]] = index[[1, 0]]


def _lose_a_token(index: np.ndarray) -> None:
    index["tokens"][0] -= 1
    index["tokens"][1] += 1


def _change_digest(index: np.ndarray) -> None:
    index["digest"][2] ^= 1


def _shorten_last(index: np.ndarray) -> None:
    index["length"][-1] -= 512


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (_swap_rows, "idx.npy: sample 0 is at byte 0 of the tar"),
        (_lose_a_token, "sample 0 has 8 tokens, its index says 7"),
        (_change_digest, "sample 2 does not match its digest"),
        (_shorten_last, "sample 6 does not match its digest"),
    ],
)
def test_index_that_does_not_match_the_tar(folder: Path, edit: Callable[[np.ndarray], None], message: str) -> None:
    _edit_index(folder, edit)
    with pytest.raises(DataError, match=message):
        verify_folder(folder)


def test_tar_that_goes_on_after_the_last_sample_of_its_index(folder: Path) -> None:
    path = folder / "shard-00000-000.tar"
    raw = path.read_bytes()[:-1024] + bytes(512) + b"x" * 512 + bytes(1024)
    path.write_bytes(raw)

    def relist(manifest: Manifest) -> None:
        digest = hashlib.sha256(raw).hexdigest()
        manifest.shards[0] = replace(manifest.shards[0], size=len(raw), sha256=digest)

    _edit_manifest(folder, relist)
    with pytest.raises(DataError, match="does not end after the last sample"):
        verify_folder(folder)


def _reverse_shards(manifest: Manifest) -> None:
    manifest.shards.reverse()


def _drop_shard(manifest: Manifest) -> None:
    del manifest.shards[-1]


def _miscount_samples(manifest: Manifest) -> None:
    manifest.shards[0] = replace(manifest.shards[0], num_samples=4)


def _miscount_tokens(manifest: Manifest) -> None:
    manifest.shards[0] = replace(manifest.shards[0], num_tokens=4)


def _wrong_digest(manifest: Manifest) -> None:
    manifest.shards[0] = replace(manifest.shards[0], sha256="0" * 64)


def _wrong_total(name: str) -> Edit:
    def edit(manifest: Manifest) -> None:
        manifest.totals[name] += 1

    return edit


def _smaller_seq_len(manifest: Manifest) -> None:
    manifest.seq_len = 7


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (_reverse_shards, "lists shard-00000-001 after shard-00001-000: not in order"),
        (_drop_shard, "shard-00001-000.idx.npy is not listed"),
        (_miscount_samples, "not the index of 4 samples"),
        (_miscount_tokens, "adds up to .* tokens, the manifest says 4"),
        (_wrong_digest, "shard-00000-000.tar does not match its sha256"),
        (_wrong_total("samples"), "totals 13 samples, the shards hold 12"),
        (_wrong_total("tokens"), "totals 97 tokens, the shards hold 96"),
        (_wrong_total("documents"), "totals 25 documents, the shards hold 24"),
        (_smaller_seq_len, "sample 0 has 8 tokens, more than seq_len 7"),
    ],
)
def test_manifest_that_does_not_match_the_shards(folder: Path, edit: Edit, message: str) -> None:
    _edit_manifest(folder, edit)
    with pytest.raises(DataError, match=message):
        verify_folder(folder)


def _piece(**changes: int) -> list[dict]:
    first, second = _pack(0).documents
    return [first | changes, second]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cu_seqlens": np.array([0, 5, 7], np.int32)}, "cu_seqlens must rise from 0 to the 8 tokens"),
        ({"cu_seqlens": np.array([1, 5, 8], np.int32)}, "cu_seqlens must rise"),
        ({"cu_seqlens": np.array([0, 5, 5, 8], np.int32)}, "cu_seqlens must rise"),
        ({"cu_seqlens": np.array([0, 5, 8], np.int64)}, "cu_seqlens int32"),
        ({"input_ids": np.arange(8, dtype=np.int64)}, "input_ids must be uint32"),
        ({"cu_seqlens": np.array([0, 4, 8], np.int32)}, "meta.json says tokens 0 to 5 .* cu_seqlens says 4"),
        ({"documents": _piece(tokens=4)}, "meta.json says tokens 0 to 5 of 4"),
        ({"documents": _piece()[:1]}, "meta.json must list the 2 documents"),
    ],
)
def test_sample_that_contradicts_itself(tmp_path: Path, changes: dict, message: str) -> None:
    _write(tmp_path, {0: [_pack(0, **changes)]})
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(DataError, match=message):
        verify_folder(tmp_path)


def test_keys_out_of_order_are_found(tmp_path: Path) -> None:
    whole = _write(tmp_path, {3: [_pack(0)]})
    (tmp_path / "run.json").write_text("{}")
    for suffix in (".tar", ".idx.npy"):
        (tmp_path / f"shard-00003-000{suffix}").rename(tmp_path / f"shard-00004-000{suffix}")
    whole.shards[0] = replace(whole.shards[0], name="shard-00004-000")
    complete_folder(tmp_path, whole)
    with pytest.raises(DataError, match="has key 00003-000000, expected 00004-000000"):
        verify_folder(tmp_path)


@pytest.mark.slow
def test_command_exits_non_zero_with_one_line(folder: Path) -> None:
    command = [sys.executable, "-m", "data_prep.verify", str(folder)]
    assert subprocess.run(command, capture_output=True, timeout=60).returncode == 0
    (folder / "shard-00000-000.tar").unlink()
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert "shard-00000-000.tar is missing" in done.stderr


def test_manifest_of_another_format_version_is_refused(folder: Path) -> None:
    raw = json.loads((folder / "manifest.json").read_text())
    assert raw["format_version"] == 1

    def edit(manifest: Manifest) -> None:
        manifest.format_version = 2

    _edit_manifest(folder, edit)
    with pytest.raises(DataError, match="has format version 2, this code reads 1"):
        verify_folder(folder)
