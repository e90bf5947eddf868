"""Signals of hidden states against whole distributions, and what they must not depend on."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from pipeline.losses.output_head import OutputHead
from pipeline.teacher.extract import compute_entropy, extract_signal, invert_distribution, uniform_draws
from pipeline.teacher.signals import HiddenSpec, SampledSpec, TopKSpec, signal_from_members

HIDDEN = 6
SHAPES = [(0, 7), (1, 100), (63, 100), (64, 100), (65, 7), (100, 100), (3, 151_936)]
CHUNKS = [1, 7, 64]


def draw(num_positions, vocab_size, dtype=torch.float64):
    torch.manual_seed(num_positions + vocab_size)
    hidden = torch.randn(num_positions, HIDDEN, dtype=dtype)
    return hidden, OutputHead(torch.randn(vocab_size, HIDDEN, dtype=dtype))


def assert_same(one, other):
    for name, array in one.to_members().items():
        assert np.array_equal(array, other.to_members()[name]), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_teachers_own_dtype_is_kept_exactly(dtype):
    hidden, head = draw(65, 7, dtype)
    name = str(dtype).removeprefix("torch.")
    signal = extract_signal(HiddenSpec(name, HIDDEN), hidden, head, "key", np.arange(65), 7)
    assert torch.equal(torch.from_numpy(signal.decode()).to(dtype), hidden)
    stored = hidden.view(torch.int16).numpy().view(np.uint16) if name == "bfloat16" else hidden.numpy()
    assert np.array_equal(signal.values, stored)


@pytest.mark.parametrize("num_positions, vocab_size", SHAPES)
def test_top_k_is_the_head_of_the_whole_distribution(num_positions, vocab_size):
    hidden, head = draw(num_positions, vocab_size)
    log_p = F.log_softmax(hidden @ head.weight.T, -1)
    order = log_p.argsort(-1, descending=True)
    for k in (1, 5, 7):
        spec = TopKSpec(k, vocab_size)
        signals = [extract_signal(spec, hidden, head, "key", np.arange(num_positions), chunk) for chunk in CHUNKS]
        signal = signals[0]
        assert np.array_equal(signal.ids, order[:, :k])
        assert np.array_equal(signal.log_probs, log_p.gather(-1, order[:, :k]).half())
        log_tail = log_p.gather(-1, order[:, k:]).logsumexp(-1)
        torch.testing.assert_close(torch.from_numpy(signal.log_tail), log_tail.float(), rtol=1e-6, atol=0)
        assert ((signal.log_tail == -np.inf) == (k == vocab_size)).all()
        assert_same(signal_from_members(spec, signal.to_members(), num_positions), signal)
        for other in signals[1:]:
            assert_same(other, signal)


def test_one_token_with_all_the_mass_leaves_a_tiny_exact_tail():
    head = OutputHead(torch.tensor([[60.0], [0.0], [-1.0]]))
    spec = TopKSpec(1, 3)
    signal = extract_signal(spec, torch.ones(1, 1), head, "key", np.arange(1))
    assert signal.log_probs[0, 0] == 0
    assert signal.log_tail[0] == pytest.approx(-60 + np.log1p(np.exp(-1)), rel=1e-6)
    signal_from_members(spec, signal.to_members(), 1)


@pytest.mark.parametrize("num_positions, vocab_size", SHAPES)
def test_draws_depend_on_seed_key_and_position_alone(num_positions, vocab_size):
    hidden, head = draw(num_positions, vocab_size)
    spec = SampledSpec(50, 1, vocab_size)
    positions = np.sort(np.random.default_rng(0).permutation(1000)[:num_positions])
    signal = extract_signal(spec, hidden, head, "key", positions, 1)
    assert_same(signal_from_members(spec, signal.to_members(), num_positions), signal)
    for chunk_size in CHUNKS[1:]:
        assert_same(extract_signal(spec, hidden, head, "key", positions, chunk_size), signal)
    rows = np.random.default_rng(1).permutation(num_positions)[: num_positions // 2 + 1]
    assert_same(extract_signal(spec, hidden[rows], head, "key", positions[rows], 7), signal.select(rows))
    if num_positions > 1:
        for other in (extract_signal(spec, hidden, head, "other", positions),
                      extract_signal(SampledSpec(50, 2, vocab_size), hidden, head, "key", positions),
                      extract_signal(spec, hidden, head, "key", positions + 1)):  # fmt: skip
            assert not np.array_equal(other.num_ids, signal.num_ids) or not np.array_equal(other.counts, signal.counts)


def test_the_stream_of_draws_never_changes():
    """A cache is filled over weeks: these numbers are part of its format."""
    draws = uniform_draws(SampledSpec(6, 7, 100), "00000-000-0000003", np.array([0, 5], np.int32))
    assert draws.shape == (2, 6) and draws.dtype == np.float64
    assert draws[0, :2].tolist() == [0.5701933360440634, 0.228772553484761] and draws[1, 5] == 0.987673196483998
    longer = uniform_draws(SampledSpec(6, 7, 100), "00000-000-0000003", np.arange(3, 9))
    assert np.array_equal(longer[2], draws[1])


@pytest.mark.parametrize("num_draws", [1, 6, 50])
def test_draws_of_positions_far_apart_are_those_of_the_whole_stream(num_draws):
    spec, largest = SampledSpec(num_draws, 7, 100), 3000
    whole = uniform_draws(spec, "key", np.arange(largest))
    rng = np.random.default_rng(num_draws)
    for share in (0.001, 0.3, 0.9):
        positions = np.flatnonzero(rng.random(largest) < share).astype(np.int32)
        assert np.array_equal(uniform_draws(spec, "key", positions), whole[positions])
        mixed = rng.permutation(positions)
        assert np.array_equal(uniform_draws(spec, "key", mixed), whole[mixed])


def test_positions_between_those_that_are_drawn_cost_nothing():
    positions = np.array([0, 2**31 - 1])  # all between them would take 17 TB
    assert uniform_draws(SampledSpec(1000, 7, 100), "key", positions).shape == (2, 1000)


def test_draws_follow_the_teachers_distribution():
    hidden, head = draw(1, 100)
    p = F.softmax(hidden @ head.weight.T, -1)[0].numpy()
    num_positions, num_draws = 2000, 200
    spec = SampledSpec(num_draws, 0, 100)
    signal = extract_signal(spec, hidden.expand(num_positions, -1), head, "key", np.arange(num_positions))
    expected = p * num_positions * num_draws
    common = expected >= 5
    observed = np.bincount(signal.ids, signal.counts, 100)
    chi_squared = ((observed - expected)[common] ** 2 / expected[common]).sum()
    freedom = common.sum() - 1
    print(f"chi-squared {chi_squared:.1f} at {freedom} degrees of freedom")
    assert freedom > 50
    assert abs(chi_squared - freedom) < 4 * np.sqrt(2 * freedom)
    # and between positions they are independent: the number of distinct ids spreads as it should
    distinct = 1 - (1 - p) ** num_draws
    assert signal.num_ids.mean() == pytest.approx(distinct.sum(), rel=0.01)


@pytest.mark.parametrize("num_positions, vocab_size", SHAPES)
def test_the_entropy_is_that_of_the_whole_distribution(num_positions, vocab_size):
    hidden, head = draw(num_positions, vocab_size)
    due = torch.special.entr(F.softmax(hidden @ head.weight.T, -1)).sum(-1)
    spec, positions = SampledSpec(3, 0, vocab_size), np.arange(num_positions)
    entropy = extract_signal(spec, hidden, head, "key", positions, 7).entropy
    torch.testing.assert_close(torch.from_numpy(entropy), due.float(), rtol=1e-6, atol=0)
    single = extract_signal(spec, hidden.float(), head.copy_to(torch.float32), "key", positions, 7).entropy
    np.testing.assert_allclose(single, due, rtol=0, atol=2e-5)


def test_the_entropy_of_one_token_of_all_and_of_none_that_matter():
    logits = torch.tensor([[0.0, -1e4, -1e38], [3.0, 3.0, 3.0], [0.0, -60.0, -61.0]])
    entropy = compute_entropy(logits)
    assert entropy[0] == 0 and entropy[1].item() == pytest.approx(np.log(3), rel=1e-6)
    assert 0 <= entropy[2] < 1e-7


def test_an_impossible_token_is_never_drawn_even_at_the_ends():
    logits = torch.tensor([[-200.0, 0.0, -200.0, 0.0, -200.0]])
    uniform = torch.tensor([[0.0, 0.5 - 2**-30, 0.5, 1 - 2**-53]], dtype=torch.float64)
    assert invert_distribution(logits, uniform).tolist() == [[1, 1, 3, 3]]
    for vocab_size in range(2, 600):  # totals of up to 62 bits, of which a float64 holds 53
        last = invert_distribution(torch.zeros(1, vocab_size), uniform)[0, -1]
        assert last == vocab_size - 1


def test_float32_and_bfloat16_teachers_give_signals_that_pass_the_checks():
    for dtype in (torch.float32, torch.bfloat16):
        hidden, head = draw(20, 151_936, dtype)
        for spec in (TopKSpec(50, 151_936), SampledSpec(50, 0, 151_936)):
            signal = extract_signal(spec, hidden, head, "key", np.arange(20), 8)
            assert_same(signal_from_members(spec, signal.to_members(), 20), signal)


@pytest.mark.parametrize(
    "spec, num_positions, message",
    [
        (TopKSpec(2, 8), 3, "the teacher has 7 where the signal"),
        (HiddenSpec("float32", 5), 3, "the teacher has 6 where the signal"),
        (TopKSpec(2, 7), 4, "4 positions"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(spec, num_positions, message):
    with pytest.raises(ValueError, match=message):
        extract_signal(spec, *draw(3, 7), "key", np.arange(num_positions))


def test_a_teacher_that_is_not_finite_is_refused():
    hidden, head = draw(3, 7, torch.float32)
    hidden[1, 2] = torch.nan
    for spec in (HiddenSpec("bfloat16", HIDDEN), TopKSpec(2, 7), SampledSpec(5, 0, 7)):
        with pytest.raises(ValueError, match="not finite"):
            extract_signal(spec, hidden, head, "key", np.arange(3))
