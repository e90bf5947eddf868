"""teacher.json, the positions policy, and the strict decoding of a sample."""

import dataclasses
import io
import random
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.data.sealed_json import load_sealed, seal
from pipeline.data.shard_format import DataError, PackedSample
from pipeline.data.tar_members import npy_bytes, tar_member
from pipeline.errors import UserError
from pipeline.teacher.cache_format import (
    PositionPolicy,
    TeacherInfo,
    check_same,
    decode_cached_sample,
    encode_cached_sample,
)
from pipeline.teacher.signals import HiddenSpec, TopKSpec

INFO = TeacherInfo("Qwen2.5-3B", "a" * 64, "b" * 64, "c" * 64, TopKSpec(64, 151_936), PositionPolicy("past_budget", 32))


def test_teacher_json_comes_back_as_it_was(tmp_path: Path) -> None:
    INFO.save(tmp_path)
    assert TeacherInfo.load(tmp_path) == INFO
    assert (tmp_path / "teacher.json").read_bytes() == INFO.to_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["teacher.json"]


def test_every_byte_of_teacher_json_counts(tmp_path: Path) -> None:
    INFO.save(tmp_path)
    path, rng = tmp_path / "teacher.json", random.Random(0)
    original = path.read_bytes()
    for position in range(len(original)):
        for value in {original[position] ^ (1 << rng.randrange(8)), ord(" ")} - {original[position]}:
            path.write_bytes(original[:position] + bytes([value]) + original[position + 1 :])
            with pytest.raises(DataError, match=r"teacher\.json"):
                TeacherInfo.load(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": 2}, "has format version 2, this code reads 1"),
        ({"compression": "zstd"}, "asks for compression 'zstd'"),
        ({"signal": {"kind": "logits"}}, "does not describe a teacher cache .*'logits'"),
        ({"signal": None}, "does not describe a teacher cache"),
        ({"positions": {"policy": "all", "min_budget": 3}}, "policy all has 0"),
        ({"positions": {"policy": "some", "min_budget": 0}}, "positions policy 'some'"),
        ({"positions": {"policy": "past_budget", "min_budget": -1}}, "min_budget -1"),
        ({"positions": {"policy": "past_budget", "min_budget": 10**30}}, "min_budget 1000"),
        ({"positions": []}, "does not describe a teacher cache"),
        ({"data_sha256": "../../etc"}, "a fingerprint is not 64 hex digits"),
        ({"teacher_sha256": 7}, "a fingerprint is not 64 hex digits"),
        ({"extra": 1}, "does not describe a teacher cache .*extra"),
    ],
)
def test_teacher_json_that_says_what_no_cache_can(tmp_path: Path, changes: dict, message: str) -> None:
    (tmp_path / "teacher.json").write_bytes(seal(INFO.to_json() | changes))
    with pytest.raises(DataError, match=message):
        TeacherInfo.load(tmp_path)


def test_a_folder_without_teacher_json_is_no_cache(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"is no teacher cache: it has no teacher.json; make one with"):
        TeacherInfo.load(tmp_path)
    with pytest.raises(DataError, match="missing"):
        load_sealed(tmp_path / "run.json")


def test_another_cache_is_refused_with_every_difference_fingerprints_first() -> None:
    check_same(INFO, INFO, "CACHE")
    other = dataclasses.replace(
        INFO, signal=HiddenSpec("int8", 2048), positions=PositionPolicy("all"), data_sha256="d" * 64
    )
    with pytest.raises(DataError) as caught:
        check_same(INFO, other, "CACHE")
    message = str(caught.value)
    assert message.startswith(f"CACHE is another cache: data_sha256 is {'c' * 64}, not {'d' * 64}; positions.min_budg")
    for part in ("signal.kind is topk, not hidden", "signal.k is 64, not None", "signal.dtype is None, not int8",
                 "positions.policy is past_budget, not all", "positions.min_budget is 32, not 0"):  # fmt: skip
        assert part in message
    assert "teacher_name" not in message and "tokenizer" not in message


@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=5),
    budget=st.integers(0, 40),
    seed=st.none() | st.integers(0, 99),
)
def test_the_policy_selects_what_its_words_say(lengths: list[int], budget: int, seed: int | None) -> None:
    total = sum(lengths)
    mask = None if seed is None else np.random.default_rng(seed).integers(0, 2, total).astype(np.uint8)
    bounds = np.cumsum([0, *lengths]).astype(np.int32)
    sample = PackedSample("0-0", np.zeros(total, np.uint32), bounds, mask, {})
    policy = PositionPolicy("past_budget", budget) if budget else PositionPolicy("all")
    due, start = [], 0
    for length in lengths:
        for place in range(length):
            if budget <= place <= length - 2 and (mask is None or mask[start + place + 1] == 1):
                due.append(start + place)
        start += length
    found = policy.select(sample)
    assert found.dtype == np.int32 and found.tolist() == due
    assert [policy.covers(other) for other in (budget - 1, budget, budget + 1)] == [False, True, True]


def test_a_policy_with_a_wrong_budget_is_refused() -> None:
    for arguments in (("all", 1), ("past_budget", -1), ("past_budget", 2.0), ("none", 0)):
        with pytest.raises(UserError, match="positions"):
            PositionPolicy(*arguments)


POSITIONS = np.array([0, 4, 9, 2**31 - 1], np.int32)
MEMBERS = {"hidden.npy": np.arange(24, dtype=np.int8).reshape(4, 6), "scale.npy": np.arange(4, dtype=np.float32)}


def test_a_sample_comes_back_as_read_only_views() -> None:
    raw = encode_cached_sample("00000-000007", POSITIONS, MEMBERS)
    key, positions, members = decode_cached_sample(raw, "here")
    assert key == "00000-000007" and list(members) == list(MEMBERS)
    np.testing.assert_array_equal(positions, POSITIONS)
    for name, array in members.items():
        assert array.dtype == MEMBERS[name].dtype and np.array_equal(array, MEMBERS[name])
    for array in (positions, *members.values()):
        assert np.shares_memory(array, np.frombuffer(raw, np.uint8)) and not array.flags.writeable


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint16, np.int32, np.float16, np.float32])
@pytest.mark.parametrize("shape", [(0,), (0, 6), (3,), (3, 0), (3, 6), (1, 1)])
def test_every_allowed_dtype_and_shape(dtype: type, shape: tuple[int, ...]) -> None:
    array = (np.arange(np.prod(shape)) % 100).astype(dtype).reshape(shape)
    found = decode_cached_sample(encode_cached_sample("k", POSITIONS[:0], {"a_b.npy": array}), "here")[2]["a_b.npy"]
    assert found.dtype == dtype and found.shape == shape and np.array_equal(found, array)


def test_tarfile_reads_a_sample_as_well() -> None:
    raw = encode_cached_sample("k", POSITIONS, MEMBERS) + bytes(1024)
    with tarfile.open(fileobj=io.BytesIO(raw)) as tar:
        assert tar.getnames() == ["k.positions.npy", "k.hidden.npy", "k.scale.npy"]
        assert np.array_equal(np.load(io.BytesIO(tar.extractfile("k.hidden.npy").read())), MEMBERS["hidden.npy"])


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
        (_raw(("k.positions.npy", npy_bytes(POSITIONS.astype(np.uint16)))), r"must be int32 \[M\], it is uint16"),
        (_raw(("k.positions.npy", npy_bytes(POSITIONS[None]))), r"must be int32 \[M\], it is int32 \[1, 4\]"),
        (_raw(("k.positions.npy", npy_bytes(np.array([-1, 3], np.int32)))), "does not rise from 0"),
        (_raw(("k.positions.npy", npy_bytes(np.array([3, 3], np.int32)))), "does not rise"),
        (_raw(("k.positions.npy", npy_bytes(np.array([2**31 - 1, -(2**31)], np.int32)))), "does not rise"),
    ],
)
def test_anything_else_is_refused_by_name(raw: bytes, message: str) -> None:
    with pytest.raises(DataError, match=r"^here: not a sample of a teacher cache") as caught:
        decode_cached_sample(raw, "here")
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
def test_damaged_bytes_raise_nothing_but_data_error(damage: Damage) -> None:
    raw, rng, num_refused = encode_cached_sample("k", POSITIONS, MEMBERS), random.Random(1), 0
    for _ in range(60):
        try:
            decode_cached_sample(damage(raw, rng), "here")
        except DataError:
            num_refused += 1
    assert num_refused >= 50  # a flip within the values is for the digest to find
