import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.losses.positions import position_weights, supervised_positions


@given(
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=6),
    budget=st.integers(1, 10),
    masked=st.booleans(),
    seed=st.integers(0, 99),
)
def test_positions_follow_the_definition_token_by_token(lengths, budget, masked, seed):
    bounds = np.cumsum([0, *lengths]).astype(np.int32)
    mask = np.random.default_rng(seed).integers(0, 2, bounds[-1], dtype=np.uint8) if masked else None
    expected = []
    for start, length in zip(bounds[:-1], lengths, strict=True):
        for t in range(length):
            has_target = t <= length - 2 and (mask is None or mask[start + t + 1] == 1)
            if t >= budget and has_target:
                expected.append(start + t)
    found = supervised_positions(bounds, budget, mask)
    assert found.dtype == np.int64 and found.tolist() == expected


def test_one_token_past_the_budget_has_no_target_and_two_have_one():
    assert supervised_positions(np.array([0, 9], np.int32), 8, None).tolist() == []
    assert supervised_positions(np.array([0, 10], np.int32), 8, None).tolist() == [8]


def test_token_weights_are_equal_and_sum_to_one_over_a_step():
    owners = [np.array([0, 0, 0]), np.array([], np.int64), np.array([0, 1, 1])]
    weights = [position_weights(o, "tokens", num_positions=6, num_samples=3) for o in owners]
    assert np.concatenate(weights).tolist() == pytest.approx([1 / 6] * 6)


def test_sample_weights_give_every_sample_the_same_say():
    owners = [np.array([0, 0, 0]), np.array([], np.int64), np.array([1, 2, 2])]
    weights = [position_weights(o, "samples", num_positions=6, num_samples=3) for o in owners]
    assert weights[0].tolist() == pytest.approx([1 / 9] * 3)
    assert weights[2].tolist() == pytest.approx([1 / 3, 1 / 6, 1 / 6])
    assert weights[1].dtype == np.float32 and len(weights[1]) == 0
