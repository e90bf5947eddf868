"""Specs, bit packing, and signals as arrays and as files."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import UserError
from pipeline.teacher.bit_packing import id_bits, pack_ids, packed_size, unpack_ids
from pipeline.teacher.signals import (
    HiddenSignal,
    HiddenSpec,
    SampledSignal,
    SampledSpec,
    TopKSignal,
    TopKSpec,
    concatenate_signals,
    signal_from_members,
    spec_from_json,
    spec_to_json,
)

SPECS = [
    *(HiddenSpec(dtype, 12) for dtype in ("float32", "bfloat16", "float16", "int8")),
    TopKSpec(3, 151_936),
    TopKSpec(7, 7),
    SampledSpec(50, 0, 151_936),
    SampledSpec(300, 1 << 63, 7),
]
COUNTS = [0, 1, 63, 64, 65, 100]


def make(spec, num_positions, seed=0):
    rng = np.random.default_rng((seed, num_positions))
    if isinstance(spec, HiddenSpec):
        return HiddenSignal.encode(spec, rng.normal(size=(num_positions, spec.hidden_size)).astype(np.float32))
    if isinstance(spec, TopKSpec):
        kept = [rng.choice(spec.vocab_size, spec.k, replace=False) for _ in range(num_positions)]
        mass = rng.dirichlet(np.ones(spec.k + 1), num_positions)
        mass[:, -1] *= spec.k < spec.vocab_size
        mass /= mass.sum(1, keepdims=True)
        with np.errstate(divide="ignore"):
            log_probs, log_tail = np.log(-np.sort(-mass[:, :-1], 1)), np.log(mass[:, -1])
        ids = np.array(kept, np.uint32).reshape(num_positions, spec.k)
        return TopKSignal(spec, ids, log_probs.astype(np.float16), log_tail.astype(np.float32))
    drawn = rng.integers(0, spec.vocab_size, (num_positions, spec.num_draws))
    rows = [np.unique(row, return_counts=True) for row in drawn]
    return SampledSignal(
        spec,
        np.array([len(ids) for ids, _ in rows], np.uint16),
        np.concatenate([np.empty(0), *(ids for ids, _ in rows)]).astype(np.uint32),
        np.concatenate([np.empty(0), *(counts for _, counts in rows)]).astype(spec.count_dtype),
        rng.uniform(0, np.log(spec.vocab_size), num_positions).astype(np.float32),
    )


def assert_same(one, other):
    assert type(one) is type(other) and one.spec == other.spec
    for name, array in one.to_members().items():
        found = other.to_members()[name]
        assert found.dtype == array.dtype and np.array_equal(found, array), name


@given(
    vocab_size=st.integers(1, 32).flatmap(lambda width: st.integers((1 << width - 1) + 1, 1 << width)) | st.just(1),
    shape=st.tuples(st.integers(0, 5), st.integers(0, 70)),
    seed=st.integers(0, 9),
)
def test_ids_of_any_width_come_back(vocab_size, shape, seed):
    ids = np.random.default_rng(seed).integers(0, vocab_size, shape, dtype=np.uint32)
    packed = pack_ids(ids, vocab_size)
    assert packed.dtype == np.uint8 and packed.shape == (shape[0], packed_size(shape[1], vocab_size))
    assert np.array_equal(unpack_ids(packed, shape[1], vocab_size), ids)
    width = id_bits(vocab_size)
    bits = (ids[..., None] >> np.arange(width, dtype=np.uint32) & 1).reshape(shape[0], shape[1] * width)
    assert np.array_equal(np.packbits(bits.astype(np.uint8), axis=1, bitorder="little"), packed)


def test_qwens_vocabulary_takes_18_bits():
    assert id_bits(151_936) == 18 and packed_size(50, 151_936) == 113
    assert [id_bits(v) for v in (1, 2, 3, 4, 5, 131_072, 131_073)] == [1, 1, 2, 2, 3, 17, 18]


def test_wrong_ids_are_refused_both_ways():
    with pytest.raises(ValueError, match="do not fit a vocabulary of 100"):
        pack_ids(np.array([3, 100]), 100)
    packed = pack_ids(np.array([127]), 128)
    with pytest.raises(ValueError, match="do not fit a vocabulary of 100"):
        unpack_ids(packed, 1, 100)
    with pytest.raises(ValueError, match="past the last id"):
        unpack_ids(packed | np.uint8(128), 1, 128)
    with pytest.raises(ValueError, match="1 bytes where 2 of 7 bits take 2"):
        unpack_ids(packed, 2, 128)


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_specs_come_back_from_json(spec):
    assert spec_from_json(json.loads(json.dumps(spec_to_json(spec)))) == spec


@pytest.mark.parametrize(
    "value, message",
    [
        ({"kind": "logits"}, "signal kind 'logits': there are hidden, topk, sampled"),
        ([], r"signal kind \[\]"),
        ({"kind": ["topk"]}, "signal kind"),
        ({"kind": "topk", "k": 5}, r"topk has fields \['k'\]; \['k', 'vocab_size'\]"),
        ({"kind": "topk", "k": 5, "vocab_size": 9, "more": 1}, "topk has fields"),
        ({"kind": "topk", "k": 10, "vocab_size": 9}, "signal k 10: an integer from 1 to 9"),
        ({"kind": "topk", "k": True, "vocab_size": 9}, "signal k True"),
        ({"kind": "topk", "k": 5.0, "vocab_size": 9}, "signal k 5.0"),
        ({"kind": "hidden", "dtype": "float8", "hidden_size": 9}, "dtype 'float8': there are float32, bfloat16"),
        ({"kind": "hidden", "dtype": "int8", "hidden_size": 0}, "hidden_size 0"),
        ({"kind": "sampled", "num_draws": 65_536, "seed": 0, "vocab_size": 9}, "num_draws 65536"),
        ({"kind": "sampled", "num_draws": 5, "seed": -1, "vocab_size": 9}, "seed -1"),
    ],
)
def test_wrong_specs_are_refused_by_name(value, message):
    with pytest.raises(UserError, match=message):
        spec_from_json(value)


@pytest.mark.parametrize("num_positions", COUNTS)
@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_signals_come_back_from_their_members(spec, num_positions):
    signal = make(spec, num_positions)
    members = signal.to_members()
    assert_same(signal_from_members(spec, members | {"positions.npy": np.arange(3)}, num_positions), signal)
    sizes, most = {name: array.nbytes for name, array in members.items()}, spec.member_bytes(num_positions)
    assert list(sizes) == list(most) and all(size <= most[name] for name, size in sizes.items())
    assert sizes == most or isinstance(spec, SampledSpec)


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_selecting_and_concatenating(spec):
    signal = make(spec, 65)
    rows = np.random.default_rng(0).permutation(65)
    pieces = [signal.select(part) for part in np.split(rows, [0, 1, 20, 64])]
    shuffled = concatenate_signals(pieces)
    assert_same(shuffled, signal.select(rows))
    assert_same(shuffled.select(np.argsort(rows)), signal)
    assert any(not np.array_equal(shuffled.to_members()[name], array) for name, array in signal.to_members().items())
    assert_same(signal_from_members(spec, pieces[2].to_members(), 19), pieces[2])
    assert len(pieces[0].to_members()[next(iter(spec.member_bytes(0)))]) == 0


def test_signals_of_different_specs_do_not_mix():
    with pytest.raises(ValueError, match="different specs"):
        concatenate_signals([make(TopKSpec(3, 9), 2), make(TopKSpec(3, 10), 2)])


def test_padding_keeps_every_id_with_its_count():
    signal = make(SampledSpec(300, 1, 7), 65).select(np.array([3, 1]))
    ids, counts = signal.padded()
    assert ids.dtype == np.int64 and counts.dtype == np.uint16 and (counts.sum(1) == 300).all()
    assert np.array_equal(ids[counts > 0], signal.ids) and np.array_equal(counts[counts > 0], signal.counts)
    assert make(SampledSpec(3, 1, 7), 0).padded()[0].shape == (0, 0)


def damaged(members, name, change):
    return members | {name: change(members[name].copy())}


def put(index, value):
    def change(array):
        array[index] = value
        return array

    return change


TOPK, SAMPLED, INT8 = TopKSpec(5, 100), SampledSpec(300, 0, 100), HiddenSpec("int8", 12)


@pytest.mark.parametrize(
    "spec, name, change, message",
    [
        (INT8, "hidden.npy", lambda a: a.astype(np.int16), "hidden.npy is int16"),
        (INT8, "hidden.npy", lambda a: a[:, 1:], r"hidden.npy is int8 \[20, 11\] where int8 \[20, 12\] is due"),
        (INT8, "scale.npy", put(0, np.nan), "scale.npy"),
        (INT8, "scale.npy", put(0, -1), "scale.npy"),
        (TOPK, "ids.npy", put((0, 0), 0xFF), "do not fit a vocabulary"),
        (TOPK, "ids.npy", lambda a: pack_ids(np.tile(np.arange(5) // 2, (20, 1)), 100), "an id twice"),
        (TOPK, "log_probs.npy", lambda a: a[:, ::-1], "does not descend"),
        (TOPK, "log_probs.npy", put((0, 0), 0.5), "does not descend"),
        (TOPK, "log_probs.npy", put((3, 4), np.nan), "does not descend"),
        (TOPK, "tail.npy", put(7, 0.0), "one distribution"),
        (TOPK, "tail.npy", put(7, np.nan), "one distribution"),
        (TOPK, "tail.npy", lambda a: a[:-1], "tail.npy is"),
        (TopKSpec(5, 5), "tail.npy", put(0, -9.0), "one distribution"),
        (SAMPLED, "num_ids.npy", put(3, 7), "counts.npy is"),
        (SAMPLED, "counts.npy", put(3, 0), "does not sum to 300"),
        (SAMPLED, "counts.npy", put(3, 299), "does not sum to 300"),
        (SAMPLED, "entropy.npy", put(3, -1e-6), "entropy.npy holds a value that is none of 100 tokens"),
        (SAMPLED, "entropy.npy", put(3, np.log(100) + 0.01), "entropy.npy holds"),
        (SAMPLED, "entropy.npy", put(3, np.nan), "entropy.npy holds"),
        (SAMPLED, "entropy.npy", lambda a: a.astype(np.float16), "entropy.npy is float16"),
        (SAMPLED, "ids.npy", lambda a: pack_ids(unpack_ids(a, len(a) * 8 // 7, 100)[::-1], 100), "does not ascend"),
    ],
)
def test_damage_is_refused_by_the_members_name(spec, name, change, message):
    members = make(spec, 20).to_members()
    signal_from_members(spec, members, 20)
    with pytest.raises(ValueError, match=message):
        signal_from_members(spec, damaged(members, name, change), 20)
    with pytest.raises(ValueError, match=f"{name} is missing"):
        signal_from_members(spec, {n: a for n, a in members.items() if n != name}, 20)
    with pytest.raises(ValueError, match=" is due"):
        signal_from_members(spec, members, 21)


@given(
    st.lists(st.floats(width=32, allow_nan=False, min_value=-(2.0**127), max_value=2.0**127), min_size=1, max_size=20)
)
def test_bfloat16_rounds_as_torch_does_and_keeps_its_own_values(values):
    hidden = np.array([values], np.float32)
    rounded = torch.from_numpy(hidden).to(torch.bfloat16)
    signal = HiddenSignal.encode(HiddenSpec("bfloat16", len(values)), hidden)
    assert torch.equal(torch.from_numpy(signal.values.view(np.int16)).view(torch.bfloat16), rounded)
    assert np.array_equal(signal.decode(), rounded.float().numpy())
    again = HiddenSignal.encode(signal.spec, signal.decode())
    assert np.array_equal(again.values, signal.values)


def test_every_finite_bfloat16_is_kept_bit_for_bit():
    bits = np.arange(1 << 16, dtype=np.uint32)
    bits = bits[(bits & 0x7F80) != 0x7F80]
    signal = HiddenSignal.encode(HiddenSpec("bfloat16", len(bits)), (bits << 16).view(np.float32)[None])
    assert np.array_equal(signal.values[0], bits)


@given(st.lists(st.floats(width=32, min_value=-(2.0**127), max_value=2.0**127), min_size=3, max_size=3))
def test_int8_is_within_half_a_step_and_zero_rows_stay_zero(values):
    hidden = np.stack([np.zeros(3, np.float32), np.array(values, np.float32)])
    with np.errstate(divide="raise", invalid="raise"):
        signal = HiddenSignal.encode(HiddenSpec("int8", 3), hidden)
    assert signal.values.min() >= -127
    largest = np.abs(hidden).max(1, keepdims=True).astype(np.float64)
    error = np.abs(signal.decode().astype(np.float64) - hidden)
    assert (error <= largest / 127 * 0.5001 + 1e-42).all() and (error[0] == 0).all()


@pytest.mark.parametrize(
    "dtype, value, message",
    [
        ("float16", 7e4, "beyond float16"),
        ("bfloat16", 3.4e38, "beyond bfloat16"),
        ("bfloat16", np.nan, "not finite"),
        ("float32", -np.inf, "not finite"),
        ("int8", np.inf, "not finite"),
    ],
)
def test_what_a_dtype_cannot_hold_is_refused(dtype, value, message):
    hidden = np.array([[1.0, value]], np.float32)
    with pytest.raises(ValueError, match=message):
        HiddenSignal.encode(HiddenSpec(dtype, 2), hidden)
