import numpy as np
import torch

from pipeline.attention.window import Document, WindowSpec
from pipeline.data.collate import DrawnSample, collate
from pipeline.data.shard_format import PackedSample


def drawn(lengths: list[int], window: WindowSpec | None, mask: np.ndarray | None = None, seed: int = 0) -> DrawnSample:
    tokens = np.random.default_rng(seed).integers(0, 2**31, sum(lengths), dtype=np.uint32)
    sample = PackedSample(f"key-{seed}", tokens, np.cumsum([0, *lengths], dtype=np.int32), mask, {})
    return DrawnSample(seed, sample, window)


def test_samples_lie_end_to_end_without_padding():
    first, second = drawn([6, 3], WindowSpec(1, 2), seed=1), drawn([5], WindowSpec(0, 2), seed=2)
    batch = collate([first, second])
    tokens = np.concatenate([first.sample.input_ids, second.sample.input_ids]).astype(np.int64)
    assert batch.input_ids.dtype == torch.int64 and batch.input_ids.tolist() == [tokens.tolist()]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 4, 5, 0, 1, 2, 0, 1, 2, 3, 4]]
    assert batch.documents == (
        Document(0, 0, 6, WindowSpec(1, 2)),
        Document(0, 6, 9, WindowSpec(1, 2)),
        Document(0, 9, 14, WindowSpec(0, 2)),
    )
    assert batch.num_tokens == 14


def test_positions_targets_and_owners_are_counted_in_the_row():
    batch = collate([drawn([6, 3], WindowSpec(1, 2), seed=1), drawn([5], WindowSpec(0, 2), seed=2)])
    assert batch.positions.tolist() == [3, 4, 11, 12]
    assert batch.targets.tolist() == batch.input_ids[0, [4, 5, 12, 13]].tolist()
    assert batch.sample_of_position.tolist() == [0, 0, 1, 1] and batch.num_supervised_samples == 2


def test_masked_targets_are_left_out():
    mask = np.array([1, 1, 1, 1, 0, 1], np.uint8)
    assert collate([drawn([6], WindowSpec(0, 2), mask)]).positions.tolist() == [2, 4]


def test_a_sample_without_window_is_read_under_full_attention_and_supervises_nothing():
    batch = collate([drawn([4], None, seed=1), drawn([5], WindowSpec(0, 2), seed=2)])
    assert batch.documents[0].window is None and batch.sample_of_position.tolist() == [1, 1]


def test_the_teacher_reads_the_same_documents_without_windows():
    batch = collate([drawn([6, 3], WindowSpec(1, 2))])
    assert batch.teacher_documents == (Document(0, 0, 6, None), Document(0, 6, 9, None))


def test_a_batch_without_positions_is_stood_in_for_by_two_tokens_that_use_the_memory():
    batch = collate([drawn([4], None), drawn([3], WindowSpec(0, 2))])
    assert len(batch.positions) == len(batch.targets) == batch.num_supervised_samples == 0
    assert batch.input_ids.shape == (1, 2) and batch.documents[0].num_evicted == 1
    assert batch.num_tokens == 7 and len(batch.samples) == 2
