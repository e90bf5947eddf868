"""Arrays through zstd frames and back, and frames that a stranger made."""

import io
import struct
import tracemalloc

import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from pipeline.data.tar_members import npy_bytes
from pipeline.teacher.cache_members import (
    HEADER_BYTES,
    MEMBER_DTYPES,
    Compression,
    decode_member,
    encode_member,
    most_stored_bytes,
    npy_header,
)

SHAPES = [(0,), (0, 6), (3,), (3, 0), (3, 6), (1, 1)]


def decode(content: bytes, compression: Compression = "zstd", most_bytes: int = 1 << 20) -> np.ndarray:
    return decode_member(b"before" + content + b"after", 6, 6 + len(content), "a.npy", compression, most_bytes)


@given(
    dtype=st.sampled_from(MEMBER_DTYPES),
    shape=st.sampled_from(SHAPES) | st.tuples(st.integers(0, 300), st.integers(1, 9)),
    seed=st.integers(0, 99),
    compression=st.sampled_from(["none", "zstd"]),
)
def test_an_array_comes_back_bit_for_bit(
    dtype: np.dtype, shape: tuple[int, ...], seed: int, compression: Compression
) -> None:
    size = int(np.prod(shape)) * dtype.itemsize
    array = np.frombuffer(np.random.default_rng(seed).bytes(size), dtype).reshape(shape)  # nan and -0.0 too
    content = encode_member(array, compression)
    found = decode(content, compression, size)
    assert found.dtype == dtype and found.shape == shape and found.tobytes() == array.tobytes()
    assert content == encode_member(array.copy(), compression) and found.flags.writeable == (compression == "zstd")
    bound = most_stored_bytes(size, compression)
    assert len(content) == bound if compression == "none" else len(content) <= bound
    assert npy_bytes(array) == npy_header(array) + array.tobytes() and len(npy_header(array)) == HEADER_BYTES


def test_noise_stays_within_the_bound_and_smooth_values_shrink() -> None:
    rng = np.random.default_rng(0)
    for size in (1 << 10, 1 << 17, (1 << 17) + 1, 1 << 21):
        noise = np.frombuffer(rng.bytes(size), np.uint8)
        assert size < len(encode_member(noise, "zstd")) <= most_stored_bytes(size, "zstd")
    bfloat16 = (rng.normal(size=(500, 576)).astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    for array, most in ((bfloat16, 0.75), (np.arange(2000, dtype=np.int32), 0.1)):
        whole, grouped = len(zstandard.compress(npy_bytes(array), 1)), len(encode_member(array, "zstd"))
        print(f"{array.dtype}: {whole / array.nbytes:.3f} as it is, {grouped / array.nbytes:.3f} with bytes grouped")
        assert grouped < most * array.nbytes and grouped < 0.95 * whole


def test_a_frame_holds_the_bytes_of_equal_significance_together() -> None:
    array = np.array([0x0102, 0x0304], np.uint16)
    frame = encode_member(array, "zstd")
    assert zstandard.decompress(frame) == npy_header(array) + b"\x02\x04\x01\x03"
    parameters = zstandard.get_frame_parameters(frame)
    assert parameters.content_size == HEADER_BYTES + 4 and not parameters.dict_id and not parameters.has_checksum


def frame_of(content: bytes, **settings: bool) -> bytes:
    return zstandard.ZstdCompressor(**settings).compress(content)


ARRAY = np.arange(2000, dtype=np.float32)
GOOD = encode_member(ARRAY, "zstd")
CONTENT = zstandard.decompress(GOOD)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "a.npy is not one zstd frame"),
        (npy_bytes(ARRAY), "not one zstd frame .*[Uu]nknown frame"),
        (GOOD[:3], "not one zstd frame"),
        (GOOD[:-1], "not one zstd frame .*did not decompress full frame"),
        (GOOD + b"x", "not one zstd frame .*1 bytes of unused data"),
        (GOOD + GOOD, "not one zstd frame .*unused data"),
        (struct.pack("<II", 0x184D2A50, 3) + b"abc", "not one zstd frame"),
        (frame_of(CONTENT, write_content_size=False), "a zstd frame that does not say its size"),
        (frame_of(CONTENT + b"x"), "a zstd frame of 8129 bytes where at most 8128 are due"),
        (frame_of(CONTENT[:-1]), "a.npy must be"),
        (frame_of(b""), "a.npy is not an .npy file"),
        (frame_of(CONTENT.replace(b"'<f4'", b"'<f8'")), "its header says <f8"),
        (frame_of(CONTENT.replace(b"} ", b" }")), "not an .npy file"),
        (frame_of(CONTENT.replace(b"'fortran_order': False", b"'fortran_order': True ")), "not an .npy file"),
        (frame_of(CONTENT.replace(b"'fortran_order': False, ", b"'fortran_order': True, ")[:8128]), "not an .npy file"),
    ],
)
def test_any_other_frame_is_refused(content: bytes, message: str) -> None:
    np.testing.assert_array_equal(decode(GOOD, most_bytes=8000), ARRAY)
    with pytest.raises(ValueError, match=message):
        decode(content, most_bytes=8000)


def test_a_header_that_numpy_would_not_write_is_refused() -> None:
    """It reads the same, but two files of one array would differ."""
    fields = npy_header(ARRAY)[10:].rstrip()
    for spaces in (0, 3, 117):
        header = b"\x93NUMPY\1\0" + struct.pack("<H", len(fields) + spaces + 1) + fields + b" " * spaces + b"\n"
        np.testing.assert_array_equal(np.load(io.BytesIO(header + ARRAY.tobytes())), ARRAY)
        for compression, wrap in (("none", bytes), ("zstd", frame_of)):
            with pytest.raises(ValueError, match=r"^a\.npy has another header than numpy writes"):
                decode(wrap(header + ARRAY.tobytes()), compression)


def claiming(content_size: int) -> bytes:
    """A frame whose header promises so many bytes, and of which hardly one follows."""
    descriptor, window = 0b1100_0000, 11 << 3  # 8 bytes of size; a window of 2 MiB
    return struct.pack("<IBBQ", 0xFD2FB528, descriptor, window, content_size) + b"\1\0\0"


@pytest.mark.parametrize("size", [1 << 60, (1 << 64) - 2, 1 << 33, 8000 + HEADER_BYTES + 1])
def test_a_frame_that_promises_too_much_is_refused_before_anything_is_allocated(size: int) -> None:
    assert zstandard.get_frame_parameters(claiming(size)).content_size == size
    with pytest.raises(ValueError, match=f"a zstd frame of {size} bytes where at most 8128 are due"):
        decode(claiming(size), most_bytes=8000)


def test_a_bomb_takes_no_memory() -> None:
    bomb = zstandard.compress(bytes(200_000_000), 3)
    assert len(bomb) < 10_000
    tracemalloc.start()
    with pytest.raises(ValueError, match="of 200000000 bytes where at most 8128"):
        decode(bomb, most_bytes=8000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000
    liar = claiming(8128)[:-3] + bomb[zstandard.frame_header_size(bomb) :]  # promises what is due and holds more
    with pytest.raises(ValueError, match="not one zstd frame"):
        decode(liar, most_bytes=8000)
