"""Copies are found across units, whatever the ranges the hashes are compared in; the first in order is kept."""

import json
import os
import resource
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep import dedup
from data_prep.dedup import ContentHash, hash_messages, hash_unreadable, mark_duplicates, save_hashes
from pipeline.data.shard_format import DataError


def _digest(text: str) -> bytes:
    content_hash = ContentHash("text")
    content_hash.update(text[:2])
    content_hash.update(text[2:])
    return content_hash.digest()


@settings(max_examples=60, deadline=None)
@given(units=st.lists(st.lists(st.integers(0, 30), max_size=12), min_size=1, max_size=6), rows=st.integers(1, 50))
def test_marks_are_those_of_a_set_kept_in_memory(
    tmp_path_factory: pytest.TempPathFactory, units: list[list[int]], rows: int
) -> None:
    folder: Path = tmp_path_factory.mktemp("hashes")
    for number, texts in enumerate(units):
        save_hashes(folder, number, b"".join(_digest(f"text {t}") for t in texts))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dedup, "RANGE_HASHES", rows)
        duplicates = mark_duplicates(folder, len(units))
    seen: set[int] = set()
    for number, texts in enumerate(units):
        expected = []
        for text in texts:
            expected.append(int(text in seen))
            seen.add(text)
        assert duplicates[number].load().tolist() == expected


def test_kinds_of_documents_are_never_copies_of_each_other() -> None:
    messages = [{"role": "user", "content": "a"}]
    assert hash_messages(messages) == hash_messages([{"content": "a", "role": "user"}])
    spelled = json.dumps(messages, sort_keys=True)
    assert len({hash_messages(messages), _digest(spelled), hash_unreadable(spelled), _digest("abc")}) == 4


def test_many_units_need_few_open_files(tmp_path: Path) -> None:
    for unit in range(200):
        save_hashes(tmp_path, unit, _digest(str(unit % 150)))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 10, hard))
    try:
        marks = [int(d.load()[0]) for d in mark_duplicates(tmp_path, 200)]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert marks == [0] * 150 + [1] * 50


def test_damaged_hashes_are_named(tmp_path: Path) -> None:
    save_hashes(tmp_path, 0, _digest("a"))
    (tmp_path / "00000.hashes.npy").write_bytes(b"damage")
    with pytest.raises(DataError, match=r"00000.hashes.npy is damaged"):
        mark_duplicates(tmp_path, 1)
