"""The strict decoding of a sample, with and without compression."""

import io
import random
import tarfile
from collections.abc import Callable

import numpy as np
import pytest
import zstandard

from pipeline.data.shard_format import DataError
from pipeline.data.tar_members import npy_bytes, tar_member
from pipeline.teacher.cache_format import PositionPolicy, TeacherInfo
from pipeline.teacher.cache_members import Compression, encode_member
from pipeline.teacher.cache_samples import (
    MAX_UNPACKED_BYTES,
    decode_cached_sample,
    encode_cached_sample,
    is_framed_as_written,
    member_bytes,
)
from pipeline.teacher.signals import HiddenSpec, Members, SampledSpec, SignalSpec, TopKSpec

POSITIONS = np.array([0, 4, 9, 2**31 - 1], np.int32)
MEMBERS = {"hidden.npy": np.arange(24, dtype=np.int8).reshape(4, 6), "scale.npy": np.arange(4, dtype=np.float32)}


COMPRESSIONS = ["none", "zstd"]
INT8, FLOAT32, BFLOAT16 = HiddenSpec("int8", 6), HiddenSpec("float32", 6), HiddenSpec("bfloat16", 3)


def make_info(compression: Compression, spec: SignalSpec) -> TeacherInfo:
    hashes = "a" * 64, "b" * 64, "c" * 64
    return TeacherInfo("teacher", "bfloat16", *hashes, spec, PositionPolicy("all"), compression, None, None)


def decode(
    raw: bytes, compression: Compression = "none", spec: SignalSpec = INT8, num_positions: int = 4
) -> tuple[str, np.ndarray, Members]:
    return decode_cached_sample(raw, make_info(compression, spec), num_positions, "here")


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_a_sample_comes_back(compression: Compression) -> None:
    raw = encode_cached_sample("00000-000007", POSITIONS, MEMBERS, compression)
    key, positions, members = decode(raw, compression)
    assert key == "00000-000007" and list(members) == list(MEMBERS)
    np.testing.assert_array_equal(positions, POSITIONS)
    for name, array in members.items():
        assert array.dtype == MEMBERS[name].dtype and np.array_equal(array, MEMBERS[name])
    for array in (positions, *members.values()):
        is_view = np.shares_memory(array, np.frombuffer(raw, np.uint8)) and not array.flags.writeable
        assert is_view == (compression == "none")
    assert is_framed_as_written(raw) and not is_framed_as_written(raw[:-1] + b"x")


def test_tarfile_reads_a_sample_as_well() -> None:
    for suffix, compression, unpack in (("", "none", bytes), (".zst", "zstd", zstandard.decompress)):
        raw = encode_cached_sample("k", POSITIONS, MEMBERS, compression) + bytes(1024)
        with tarfile.open(fileobj=io.BytesIO(raw)) as tar:
            assert tar.getnames() == [f"k.{name}.npy{suffix}" for name in ("positions", "hidden", "scale")]
            content = unpack(tar.extractfile(f"k.hidden.npy{suffix}").read())
        assert np.array_equal(np.load(io.BytesIO(content)), MEMBERS["hidden.npy"])


def test_a_cache_of_the_other_kind_is_not_read() -> None:
    for written, read in (("none", "zstd"), ("zstd", "none")):
        with pytest.raises(DataError, match="its members are"):
            decode(encode_cached_sample("k", POSITIONS, MEMBERS, written), read)


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("num_positions", [0, 3, 5, 10**6])
def test_another_number_of_positions_than_the_index_says(compression: Compression, num_positions: int) -> None:
    raw = encode_cached_sample("k", POSITIONS, MEMBERS, compression)
    with pytest.raises(DataError, match=rf"4 positions, its index says {num_positions}|of \d+ bytes where at most \d+"):
        decode(raw, compression, num_positions=num_positions)


@pytest.mark.parametrize("spec", [HiddenSpec("float32", 8192), TopKSpec(200, 151_936), SampledSpec(9, 0, 99)])
def test_a_compressed_sample_has_a_largest_size(spec: SignalSpec) -> None:
    """Whatever an index claims, no more than that is allocated."""
    most = MAX_UNPACKED_BYTES // sum(member_bytes(spec, 1000).values()) * 1000
    for num_positions in (most + 2000, 1 << 62):
        with pytest.raises(DataError, match=f"{num_positions} positions take more than the 4294967296 bytes"):
            decode(b"", "zstd", spec, num_positions)
    with pytest.raises(DataError, match="no header of a plain file"):
        decode(b"", "zstd", spec, most - 1000)


def _raw(*parts: tuple[str, bytes]) -> bytes:
    return b"".join(tar_member(name, content) for name, content in parts)


def _npy(array: np.ndarray, **header: object) -> bytes:
    """An .npy file whose header says otherwise."""
    raw = npy_bytes(array)
    for old, new in header.values():
        assert old in raw and len(old) == len(new)
        raw = raw.replace(old, new, 1)
    return raw


def _pickled() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.array([print], object), allow_pickle=True)
    return buffer.getvalue()


def _link() -> bytes:
    link = tarfile.TarInfo("k.hidden.npy")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    return link.tobuf()


P = ("k.positions.npy", npy_bytes(POSITIONS))
H = ("k.hidden.npy", npy_bytes(MEMBERS["hidden.npy"]))
EMPTY = np.zeros((0, 6), np.int8)
SHAPE = b"'shape': (4, 6)"


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "no header of a plain file"),
        (_raw(P)[:-1], "positions.npy is cut short"),
        (_raw(P) + b"x" * 512, "no header of a plain file"),
        (_raw(P) + _link(), "no header of a plain file"),
        (_raw(P, ("../k.hidden.npy", H[1])), "'../k.hidden.npy' has no name of a sample's part"),
        (_raw(P, ("/k.hidden.npy", H[1])), "has no name"),
        (_raw(P, ("k.hidden.sh", H[1])), "has no name"),
        (_raw(P, ("k.Hidden.npy", H[1])), "has no name"),
        (_raw(H, P), "its members are"),
        (_raw(H), "its members are"),
        (_raw(P), "its members are"),
        (_raw(P, H, ("k.more.npy", H[1])), "its members are"),
        (_raw(P, ("k.hidden.npy.zst", H[1])), "its members are"),
        (_raw(P, ("k.hidden.zst", H[1])), "has no name"),
        (_raw(P, H, H), "its members are"),
        (_raw(P, ("j.hidden.npy", H[1])), "its members are"),
        (_raw(P, ("k.hidden.npy", _pickled())), "pickled objects are never loaded"),
        (_raw(P, ("k.hidden.npy", npy_bytes(np.zeros(3)))), "hidden.npy must be uint8 or .* its header says <f8"),
        (_raw(P, ("k.hidden.npy", npy_bytes(np.zeros(3, ">f4")))), "hidden.npy must be"),
        (_raw(P, ("k.hidden.npy", npy_bytes(np.zeros((2, 2, 2), np.int8)))), r"hidden.npy must be .* \(2, 2, 2\)"),
        (_raw(P, ("k.hidden.npy", npy_bytes(np.array(1, np.int8)))), "hidden.npy must be"),
        (_raw(P, ("k.hidden.npy", npy_bytes(np.asfortranarray(MEMBERS["hidden.npy"])))), "hidden.npy must be"),
        (_raw(P, ("k.hidden.npy", _npy(MEMBERS["hidden.npy"], shape=(SHAPE, b"'shape': (4, 7)")))), "must be"),
        (_raw(P, ("k.hidden.npy", _npy(MEMBERS["hidden.npy"], shape=(SHAPE, b"'shape': (46, )")))), "must be"),
        (_raw(P, ("k.hidden.npy", _npy(MEMBERS["hidden.npy"], shape=(SHAPE, b"'shape': (04,6)")))), "must be"),
        (_raw(P, ("k.hidden.npy", _npy(MEMBERS["hidden.npy"], magic=(b"NUMPY\1", b"NUMPY\2")))), "not an .npy file"),
        (_raw(P, ("k.hidden.npy", _npy(EMPTY, shape=(b"(0, 6), }" + b" " * 18, b"(0, %d), }" % 10**18)))), "must be"),
        (_raw(P, ("k.hidden.npy", b"")), "not an .npy file"),
        (_raw(("k.positions.npy", npy_bytes(POSITIONS.astype(np.uint16))), H), r"must be int32 \[M\], it is uint16"),
        (_raw(("k.positions.npy", npy_bytes(POSITIONS[None])), H), r"must be int32 \[M\], it is int32 \[1, 4\]"),
        (_raw(("k.positions.npy", npy_bytes(np.array([-1, 3, 4, 5], np.int32))), H), "does not rise from 0"),
        (_raw(("k.positions.npy", npy_bytes(np.array([1, 2, 3, 3], np.int32))), H), "does not rise"),
        (_raw(("k.positions.npy", npy_bytes(np.array([0, 1, 2**31 - 1, -(2**31)], np.int32))), H), "does not rise"),
    ],
)
def test_anything_else_is_refused_by_name(raw: bytes, message: str) -> None:
    with pytest.raises(DataError, match=r"^here: not a sample of a teacher cache") as caught:
        decode(raw, spec=FLOAT32)
    caught.match(message)


@pytest.mark.parametrize("name", ["positions", "hidden"])
def test_a_frame_that_is_none_or_too_large_is_refused_by_name(name: str) -> None:
    frames = {
        n: encode_member(array, "zstd") for n, array in (("positions", POSITIONS), ("hidden", MEMBERS["hidden.npy"]))
    }
    decode(_raw(*((f"k.{n}.npy.zst", f) for n, f in frames.items())), "zstd", BFLOAT16)
    large = zstandard.compress(bytes(1 << 30))
    for frame, message in (
        (b"", "is not one zstd frame"),
        (frames[name][:-1], "is not one zstd frame"),
        (frames[name] + frames[name], "is not one zstd frame"),
        (large, r"npy: a zstd frame of 1073741824 bytes where at most \d+ are due"),
    ):
        raw = _raw(*((f"k.{n}.npy.zst", f) for n, f in (frames | {name: frame}).items()))
        with pytest.raises(DataError, match=rf"^here: not a sample of a teacher cache \({name}\.npy.*") as caught:
            decode(raw, "zstd", BFLOAT16)
        caught.match(message)


Damage = Callable[[bytes, random.Random], bytes]


@pytest.mark.parametrize(
    "damage",
    [
        lambda raw, rng: raw[: rng.randrange(len(raw))],
        lambda raw, rng: raw[rng.randrange(1, len(raw)) :],
        lambda raw, rng: bytes(b ^ (rng.random() < 0.01) << rng.randrange(8) for b in raw),
        lambda raw, rng: rng.randbytes(len(raw)),
    ],
    ids=["cut off", "begins later", "flipped", "noise"],
)
@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_damaged_bytes_raise_nothing_but_data_error(damage: Damage, compression: Compression) -> None:
    raw, rng, num_refused = encode_cached_sample("k", POSITIONS, MEMBERS, compression), random.Random(1), 0
    for _ in range(60):
        try:
            decode(damage(raw, rng), compression)
        except DataError:
            num_refused += 1
    assert num_refused >= 50  # a flip within the values is for the digest to find
