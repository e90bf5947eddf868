"""The order of training: pure, even, and the shares that were asked for."""

import itertools
import re
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data.order import SampleOrder, Shuffle, resolve_mixture, sample_order, share_slots
from pipeline.data.shard_format import DataError, Manifest, ShardEntry

PINNED_ORDER = [9, 2, 10, 6, 11, 8, 4, 0, 1, 3, 7, 5]
PINNED_MIXTURE = [7, 2, 1, 0, 4, 6, 3, 5, 3, 4, 5, 2, 1, 0, 6, 7]


def manifest(sizes: dict[str, list[int]], weights: dict[str, float] | None = None) -> Manifest:
    """A folder with shards of `sizes[source]` samples each."""
    shards = [
        ShardEntry(f"shard-{unit:05d}-{number:03d}", source, 1, "0" * 64, 1, "0" * 64, size, size)
        for unit, (source, counts) in enumerate(sizes.items())
        for number, size in enumerate(counts)
    ]
    sources = [{"name": name, "weight": (weights or {}).get(name)} for name in sizes]
    return Manifest("tiny", "0" * 64, 16, {}, sources, shards, [], {})


def take(order: SampleOrder, start: int, stop: int) -> list[int]:
    return [order.dataset_index(i) for i in range(start, stop)]


def test_order_is_a_permutation_that_depends_on_each_argument() -> None:
    order = sample_order(0, 0, 1000, "print")
    assert sorted(order) == list(range(1000)) and order.dtype == np.int64
    np.testing.assert_array_equal(order, sample_order(0, 0, 1000, "print"))
    for other in ((1, 0, 1000, "print"), (0, 1, 1000, "print"), (0, 0, 1000, "other")):
        assert (order != sample_order(*other)).mean() > 0.9


def test_orders_are_the_same_for_ever() -> None:
    assert sample_order(7, 3, 12, "abc").tolist() == PINNED_ORDER

    class Named(Manifest):
        sha256 = "abc"  # whatever fields a later manifest has

    folder = Named(**vars(manifest({"a": [3, 3], "b": [1, 1]})))
    order = SampleOrder(folder, 7, {"a": 0.75, "b": 0.25}, Shuffle("block", 1))
    assert take(order, 0, 16) == PINNED_MIXTURE


def test_first_places_are_uniform() -> None:
    counts = np.bincount([sample_order(seed, 0, 8, "x")[0] for seed in range(4000)], minlength=8)
    assert (np.abs(counts - 500) < 5 * np.sqrt(500)).all()


def test_without_weights_an_epoch_is_one_permutation_of_the_folder() -> None:
    folder = manifest({"a": [5, 6], "b": [4]})
    order = SampleOrder(folder, seed=3)
    assert order.fingerprint == folder.sha256
    for epoch in range(3):
        expected = sample_order(3, epoch, 15, folder.sha256).tolist()
        assert take(order, 15 * epoch, 15 * epoch + 15) == expected


@given(
    weights=st.dictionaries(st.sampled_from("abcdef"), st.floats(0.1, 10), min_size=1),
    num_slots=st.integers(1000, 10**9),
)
@settings(max_examples=100, deadline=None)
def test_slots_are_the_nearest_whole_shares_and_add_up(weights: dict[str, float], num_slots: int) -> None:
    slots = share_slots(weights, num_slots)
    assert sum(slots.values()) == num_slots
    for name, weight in weights.items():
        assert abs(slots[name] - weight / sum(weights.values()) * num_slots) <= 1 + 1e-6
    assert slots == share_slots(dict(reversed(weights.items())), num_slots)


def test_equal_remainders_are_settled_by_name() -> None:
    assert share_slots({"b": 1, "a": 1}, 3) == {"a": 2, "b": 1}


@pytest.mark.parametrize("shuffle", [Shuffle(), Shuffle("block", 2)])
def test_a_mixture_gives_each_source_its_share_and_reads_it_evenly(shuffle: Shuffle) -> None:
    sizes = {"small": [3, 4], "large": [20, 13, 20], "unused": [10]}
    order = SampleOrder(manifest(sizes), 0, {"small": 0.5, "large": 0.5}, shuffle)
    assert order.num_slots == 70
    epochs = [take(order, 70 * e, 70 * e + 70) for e in range(4)]
    streams: dict[str, list[int]] = {"small": [], "large": []}
    for epoch in epochs:
        small = [i for i in epoch if i < 7]
        large = [i for i in epoch if 7 <= i < 60]
        assert len(small) == len(large) == 35
        streams["small"] += small
        streams["large"] += large
    assert [epoch[:20] for epoch in epochs] != [epochs[0][:20]] * 4
    for name, members in (("small", range(7)), ("large", range(7, 60))):
        passes = [streams[name][k : k + len(members)] for k in range(0, 140, len(members))]
        assert all(sorted(p) == list(members) for p in passes if len(p) == len(members))
        assert all(a != b for a, b in itertools.pairwise(passes))
    first_half = Counter(i < 7 for i in epochs[0][:35])
    assert 8 <= first_half[True] <= 27  # scattered, not one source after the other


def test_the_order_of_names_and_the_scale_of_weights_do_not_matter() -> None:
    folder = manifest({"a": [9], "b": [11]})
    orders = [SampleOrder(folder, 0, m) for m in ({"a": 0.7, "b": 0.3}, {"b": 3, "a": 7})]
    assert orders[0].fingerprint == orders[1].fingerprint != folder.sha256
    assert take(orders[0], 0, 60) == take(orders[1], 0, 60)


def test_block_shuffle_stays_within_groups_of_shards() -> None:
    counts = [7, 3, 5, 5, 9, 2, 6]
    order, bounds = SampleOrder(manifest({"a": counts}), 1, None, Shuffle("block", 3)), np.cumsum([0, *counts])
    first, second = take(order, 0, 37), take(order, 37, 74)
    assert sorted(first) == sorted(second) == list(range(37)) and first != second
    shards = (np.searchsorted(bounds, first, side="right") - 1).tolist()
    seen = list(dict.fromkeys(shards))
    groups = [set(seen[:3]), set(), set()]
    sizes = [sum(counts[s] for s in groups[0])]
    rest = shards[sizes[0] :]
    assert set(shards[: sizes[0]]) == groups[0] and not groups[0] & set(rest)
    assert shards[: sizes[0]] != sorted(shards[: sizes[0]], key=seen.index)  # samples of a group are mixed
    assert seen != sorted(seen)


@pytest.mark.parametrize(
    ("weights", "override", "message"),
    [
        (None, {"code": 1.0}, "--train.mixture names the source 'code'; the data has a, b, empty"),
        (None, {"a": 0.0}, "--train.mixture gives the source 'a' the weight 0.0"),
        (None, {"a": float("nan")}, "the weight nan; it must be finite"),
        (None, {"a": 1.0, "empty": 1.0}, "a weight to the source 'empty', of which the data has no sample"),
        (None, {}, "--train.mixture names no source; the data has a, b, empty"),
        ({"a": 1.0}, None, "the data's manifest gives the source 'b' the weight None"),
        ({"a": 1.0, "b": -1.0, "empty": 1.0}, None, "the source 'b' the weight -1.0"),
    ],
)
def test_a_mixture_that_does_not_fit_is_refused(weights, override, message: str) -> None:
    with pytest.raises(DataError, match=re.escape(message)):
        resolve_mixture(manifest({"a": [3], "b": [2], "empty": []}, weights), override)


def test_a_share_of_no_sample_is_refused() -> None:
    with pytest.raises(DataError, match=r"gives 'b' none of the epoch's 10 samples \(weight 1 of 100"):
        share_slots({"a": 99, "b": 1}, 10)


def test_the_manifests_weights_are_the_default_and_an_override_replaces_them() -> None:
    folder = manifest({"a": [3], "b": [2]}, {"a": 2.0, "b": 1.0})
    assert resolve_mixture(folder) == {"a": 2.0, "b": 1.0}
    assert resolve_mixture(folder, {"b": 5}) == {"b": 5}
    assert resolve_mixture(manifest({"a": [3], "b": [2]})) is None
