"""The sample's encoding in a tar, and the tokenizer's fingerprint."""

import hashlib
import io
import json
import pickle
import tarfile
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from data_prep.shard_writer import encode_sample
from pipeline.data.shard_format import (
    INDEX_DTYPE,
    DataError,
    PackedSample,
    ShardEntry,
    decode_sample,
    parse_index,
    tokenizer_fingerprint,
)
from pipeline.data.tar_members import npy_bytes

BOUNDS = np.array([0, 2, 3], np.int32)
META = {"documents": [{"id": "ä"}, {"id": "b"}]}


def _sample(**changes: object) -> PackedSample:
    fields = {"input_ids": np.array([7, 8, 9], np.uint32), "cu_seqlens": BOUNDS, "loss_mask": None, "meta": META}
    return PackedSample("00000-000000", **fields | changes)


@settings(max_examples=50, deadline=None)
@given(
    ids=hnp.arrays(np.uint32, st.integers(1, 300)),
    with_mask=st.booleans(),
)
def test_decoding_gives_back_what_was_encoded(ids: np.ndarray, with_mask: bool) -> None:
    mask = (ids % 2).astype(np.uint8) if with_mask else None
    sample = _sample(
        input_ids=ids, cu_seqlens=np.array([0, len(ids)], np.int32), loss_mask=mask, meta={"documents": [{}]}
    )
    decoded = decode_sample(encode_sample(sample), "here")
    assert decoded.key == sample.key and decoded.meta == sample.meta
    np.testing.assert_array_equal(decoded.input_ids, ids)
    assert decoded.input_ids.dtype == np.uint32 and decoded.longest_document == len(ids)
    if mask is None:
        assert decoded.loss_mask is None
    else:
        np.testing.assert_array_equal(decoded.loss_mask, mask)


def test_members_are_in_order_and_carry_no_time_or_owner() -> None:
    raw = encode_sample(_sample(loss_mask=np.ones(3, np.uint8)))
    with tarfile.open(fileobj=io.BytesIO(raw)) as tar:
        members = tar.getmembers()
    names = ["input_ids.npy", "cu_seqlens.npy", "loss_mask.npy", "meta.json"]
    assert [m.name for m in members] == [f"00000-000000.{name}" for name in names]
    assert {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode) for m in members} == {(0, 0, 0, "", "", 0o644)}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"input_ids": np.zeros((3, 1), np.uint32)}, "input_ids.npy must be uint32"),
        ({"cu_seqlens": np.zeros(0, np.int32)}, "cu_seqlens must rise"),
        ({"loss_mask": np.ones(2, np.uint8)}, r"loss_mask must be uint8 \[3\]"),
        ({"loss_mask": np.ones(3, bool)}, "loss_mask.npy must be uint8"),
        ({"meta": {"documents": [{}]}}, "must list the 2 documents"),
        ({"meta": []}, "must list the 2 documents"),
    ],
)
def test_arrays_that_do_not_make_a_sample_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(DataError, match=f"here: .*{message}"):
        decode_sample(encode_sample(_sample(**changes)), "here")


@pytest.mark.parametrize("raw", [b"", b"no tar", encode_sample(_sample())[:700], encode_sample(_sample())[1536:]])
def test_bytes_that_are_no_sample_are_refused(raw: bytes) -> None:
    with pytest.raises(DataError, match="here: not a packed sample"):
        decode_sample(raw, "here")


def test_two_samples_are_not_one() -> None:
    other = PackedSample("00000-000001", *list(vars(_sample()).values())[1:])
    with pytest.raises(DataError, match="here: not a packed sample"):
        decode_sample(encode_sample(_sample()) + encode_sample(other), "here")


def _index(num_samples: int) -> np.ndarray:
    index = np.zeros(num_samples, INDEX_DTYPE)
    index["offset"], index["length"], index["tokens"] = 10 * np.arange(num_samples), 10, 3
    return index


def _entry(raw: bytes, num_samples: int, num_tokens: int) -> ShardEntry:
    return ShardEntry("s", "web", 100, "0" * 64, len(raw), hashlib.sha256(raw).hexdigest(), num_samples, num_tokens)


@pytest.mark.parametrize("num_samples", [0, 1, 10])
def test_index_comes_back_as_it_was_written(num_samples: int) -> None:
    raw = npy_bytes(_index(num_samples))
    found = parse_index(raw, _entry(raw, num_samples, 3 * num_samples), "here")
    np.testing.assert_array_equal(found, _index(num_samples))
    assert found.dtype == INDEX_DTYPE


def _npy(shape: object, descr: object = INDEX_DTYPE.descr) -> bytes:
    """An .npy header of any content, and the rows of an index of 2 samples."""
    header = f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {shape}, }}".ljust(200).encode() + b"\n"
    return b"\x93NUMPY\x01\0" + len(header).to_bytes(2, "little") + header + _index(2).tobytes()


HUGE = 10**18


@pytest.mark.parametrize(
    ("raw", "num_samples"),
    [
        (_npy((HUGE,)), HUGE),
        (_npy((10**9,)), 10**9),
        (_npy((-1,)), 2),
        (_npy((2,), "|O"), 2),
        (_npy("[" * 3000), 2),
        (_npy((2,)), 2),  # an .npy, but not byte for byte as data_prep writes it
        (npy_bytes(_index(2)), HUGE),
        (npy_bytes(_index(2)), 1),
        (npy_bytes(_index(2)), 3),
        (npy_bytes(_index(2)) + b"x", 2),
        (npy_bytes(_index(2))[:-1], 2),
        (npy_bytes(_index(2))[:50], 2),
        (npy_bytes(_index(2)["offset"].copy()), 2),
        (b"", 0),
        (pickle.dumps(_index(2)), 2),
    ],
)
def test_only_the_bytes_of_an_index_are_read_as_one(raw: bytes, num_samples: int) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match=f"here is not the index of {num_samples} samples"):
            parse_index(raw, _entry(raw, num_samples, 6), "here")
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("offset", -1, "places samples outside the 100 bytes"),
        ("offset", 91, "places samples outside"),
        ("length", 0, "places samples outside"),
        ("length", -(1 << 63), "places samples outside"),
        ("offset", (1 << 63) - 1, "places samples outside"),  # its end overflows
        ("length", (1 << 63) - 1, "places samples outside"),
        ("tokens", 0, "lists samples without tokens"),
        ("tokens", 7, "adds up to 10 tokens, the manifest says 6"),
    ],
)
def test_index_that_cannot_be_is_refused(field: str, value: int, message: str) -> None:
    index = _index(2)
    index[field][1] = value
    raw = npy_bytes(index)
    with pytest.raises(DataError, match=f"here {message}"):
        parse_index(raw, _entry(raw, 2, 6), "here")


def test_fingerprint_sees_content_only(tmp_path: Path) -> None:
    content = {"model": {"vocab": {"a": 0, "b": 1}}, "truncation": None, "padding": None}
    same = {"padding": {"length": 3}, "model": {"vocab": {"b": 1, "a": 0}}}
    other = {"model": {"vocab": {"a": 1, "b": 0}}}
    fingerprints = []
    for number, (value, indent) in enumerate(((content, None), (same, 2), (other, None))):
        path = tmp_path / f"{number}.json"
        path.write_text(json.dumps(value, indent=indent))
        fingerprints.append(tokenizer_fingerprint(path))
    assert fingerprints[0] == fingerprints[1] != fingerprints[2]
