"""Copies are found across units, whatever the ranges the hashes are compared in; the first in order is kept."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep import dedup
from data_prep.dedup import ContentHash, mark_duplicates, save_hashes


def _digest(text: str) -> bytes:
    content_hash = ContentHash()
    assert "".join(content_hash.pass_on([text[:2], text[2:]])) == text
    return content_hash.digest()


@settings(max_examples=60, deadline=None)
@given(units=st.lists(st.lists(st.integers(0, 30), max_size=12), min_size=1, max_size=6), rows=st.integers(1, 50))
def test_marks_are_those_of_a_set_kept_in_memory(
    tmp_path_factory: pytest.TempPathFactory, units: list[list[int]], rows: int
) -> None:
    folder: Path = tmp_path_factory.mktemp("hashes")
    for number, texts in enumerate(units):
        save_hashes(folder, number, [_digest(f"text {t}") for t in texts])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dedup, "RANGE_HASHES", rows)
        duplicates = mark_duplicates(folder, len(units))
    seen: set[int] = set()
    for number, texts in enumerate(units):
        expected = []
        for text in texts:
            expected.append(int(text in seen))
            seen.add(text)
        assert duplicates.of_unit(number).tolist() == expected


def test_hash_is_of_the_content_alone() -> None:
    first, second = ContentHash(), ContentHash()
    first.add_messages([{"role": "user", "content": "a"}])
    second.add_messages([{"content": "a", "role": "user"}])
    assert first.digest() == second.digest() != _digest("a")
    assert _digest("abc") != _digest("abd")
