"""teacher.json and the positions policy."""

import dataclasses
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.data.sealed_json import load_sealed, seal
from pipeline.data.shard_format import DataError, PackedSample
from pipeline.errors import UserError
from pipeline.teacher.cache_format import PositionPolicy, TeacherInfo, check_same
from pipeline.teacher.signals import HiddenSpec, TopKSpec

INFO = TeacherInfo(
    *("Qwen2.5-3B", "bfloat16", "a" * 64, "b" * 64, "c" * 64),
    TopKSpec(64, 151_936),
    PositionPolicy("past_budget", 32),
    *("zstd", None, 256),
)


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
        ({"format_version": 1}, "has format version 1, this code reads 3"),
        ({"compression": "gzip"}, "has compression 'gzip', this code reads none and zstd"),
        ({"compression": ["zstd"]}, "has compression .'zstd'., this code reads"),
        ({"base_dtype": "float16"}, "has base_dtype 'float16', this code reads float32 and bfloat16"),
        ({"base_dtype": None}, "has base_dtype None"),
        ({"teacher_name": 7}, "teacher_name is no text"),
        ({"signal": {"kind": "logits"}}, "does not describe a teacher cache .*'logits'"),
        ({"signal": None}, "does not describe a teacher cache"),
        ({"positions": {"policy": "all", "min_budget": 3}}, "policy all has 0"),
        ({"positions": {"policy": "some", "min_budget": 0}}, "positions policy 'some'"),
        ({"positions": {"policy": "past_budget", "min_budget": -1}}, "min_budget -1"),
        ({"positions": {"policy": "past_budget", "min_budget": 10**30}}, "min_budget 1000"),
        ({"positions": []}, "does not describe a teacher cache"),
        ({"data_sha256": "../../etc"}, "a fingerprint is not 64 hex digits"),
        ({"teacher_sha256": 7}, "a fingerprint is not 64 hex digits"),
        ({"forward_chunk": 0}, "has forward_chunk 0, this code reads null and numbers from 1"),
        ({"sequence_parallel_size": None}, "has sequence_parallel_size None, this code reads numbers from 1"),
        ({"chunk_size": True}, "has chunk_size True, this code reads null"),
        ({"extra\nline": 1}, r"does not describe a teacher cache \(.*extra\\nline"),
        ({"format_version": "2\n"}, r"has format version '2\\n', this"),
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
        INFO, signal=HiddenSpec("int8", 2048), positions=PositionPolicy("all"), data_sha256="d" * 64,
        base_dtype="float32", compression="none",
    )  # fmt: skip
    with pytest.raises(DataError) as caught:
        check_same(INFO, other, "CACHE")
    message = str(caught.value)
    assert message.startswith(f"CACHE is another cache: data_sha256 is {'c' * 64}, not {'d' * 64}; base_dtype is ")
    for part in ("signal.kind is topk, not hidden", "signal.k is 64, not None", "signal.dtype is None, not int8",
                 "base_dtype is bfloat16, not float32", "compression is zstd, not none",
                 "positions.policy is past_budget, not all", "positions.min_budget is 32, not 0"):  # fmt: skip
        assert part in message
    assert "teacher_name" not in message and "tokenizer" not in message


def test_what_a_stranger_named_cannot_write_on_the_terminal() -> None:
    other = dataclasses.replace(INFO, teacher_name="new\nline\x1b[2J")
    with pytest.raises(DataError, match=r"teacher_name is new\\nline\\x1b\[2J, not Qwen2.5-3B"):
        check_same(other, INFO, "CACHE")


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
