"""Token ids in as many bits as the vocabulary needs. numpy only."""

import numpy as np

_GROUP = 32  # ids packed together: at any width they fill whole 32-bit words


def id_bits(vocab_size: int) -> int:
    """Bits of a packed id: 18 for 151,936 tokens; at least 1."""
    return max(1, (vocab_size - 1).bit_length())


def packed_size(count: int, vocab_size: int) -> int:
    """Bytes that `count` ids take."""
    return -(-count * id_bits(vocab_size) // 8)


def pack_ids(ids: np.ndarray, vocab_size: int) -> np.ndarray:
    """Packs ids along the last axis, least significant bit first; each row begins at a byte, its last one zero-filled.

    Args:
        ids: integers [..., K] below `vocab_size`.

    Returns:
        uint8 [..., packed_size(K, vocab_size)].

    Raises:
        ValueError: an id out of range.
    """
    _check_ids(ids, vocab_size)
    width, count = id_bits(vocab_size), ids.shape[-1]
    groups = -(-count // _GROUP)
    padded = np.zeros((*ids.shape[:-1], groups * _GROUP), np.uint32)
    padded[..., :count] = ids
    columns = padded.reshape(-1, _GROUP)
    words = np.zeros((len(columns), width), "<u4")
    for number in range(_GROUP):
        word, shift = divmod(number * width, 32)
        words[:, word] |= columns[:, number] << np.uint32(shift)
        if shift + width > 32:
            words[:, word + 1] |= columns[:, number] >> np.uint32(32 - shift)
    packed = words.view(np.uint8).reshape(*ids.shape[:-1], groups * width * 4)
    return np.ascontiguousarray(packed[..., : packed_size(count, vocab_size)])


def unpack_ids(packed: np.ndarray, count: int, vocab_size: int) -> np.ndarray:
    """The inverse of `pack_ids`.

    Args:
        packed: uint8 [..., packed_size(count, vocab_size)].
        count: ids a row, K.

    Returns:
        uint32 [..., K].

    Raises:
        ValueError: another size, an id out of range, or bits past the last id.
    """
    width, size = id_bits(vocab_size), packed_size(count, vocab_size)
    if packed.shape[-1] != size:
        raise ValueError(f"packed ids: {packed.shape[-1]} bytes where {count} of {width} bits take {size}")
    groups = -(-count // _GROUP)
    padded = np.zeros((*packed.shape[:-1], groups * width * 4), np.uint8)
    padded[..., :size] = packed
    words = padded.view("<u4").reshape(-1, width)
    columns = np.empty((len(words), _GROUP), np.uint32)
    for number in range(_GROUP):
        word, shift = divmod(number * width, 32)
        columns[:, number] = words[:, word] >> np.uint32(shift)
        if shift + width > 32:
            columns[:, number] |= words[:, word + 1] << np.uint32(32 - shift)
    columns &= np.uint32((1 << width) - 1)
    unpacked = columns.reshape(*packed.shape[:-1], groups * _GROUP)
    ids = np.ascontiguousarray(unpacked[..., :count])
    _check_ids(ids, vocab_size)
    if unpacked[..., count:].any():
        raise ValueError("packed ids: bits are set past the last id")
    return ids


def _check_ids(ids: np.ndarray, vocab_size: int) -> None:
    if ids.size and not (ids.min() >= 0 and ids.max() < vocab_size):
        raise ValueError(f"ids from {ids.min()} to {ids.max()} do not fit a vocabulary of {vocab_size}")
