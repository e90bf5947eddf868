"""Stop anywhere, go on with other ranks, threads, micro-batches and accumulation: the same samples, each once."""

from collections import Counter
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config import TrainConfig, WindowConfig
from pipeline.data.loader import PackedDataset
from pipeline.training.batches import BatchSource
from pipeline.training.preflight import open_stream
from tests.data.folders import make_folder

SIZES = {"books": 11, "code": 23, "mail": 5}
NUM_SLOTS = sum(SIZES.values())
WINDOW = WindowConfig(budgets=[4, 8], sinks=[0, 2])
MIXTURES = [None, {"books": 0.5, "code": 0.25, "mail": 0.25}, {"mail": 2.0, "code": 1.0}, {"code": 1.0}]


@dataclass(frozen=True)
class Segment:
    """One start of a run: how it is spread out, and after how many steps it stops."""

    num_ranks: int
    loader_workers: int
    micro_batch_size: int
    accumulation: int
    num_steps: int

    @property
    def global_batch_size(self) -> int:
        return self.num_ranks * self.micro_batch_size * self.accumulation


SEGMENTS = st.lists(
    st.builds(
        Segment,
        num_ranks=st.integers(1, 4),
        loader_workers=st.integers(1, 3),
        micro_batch_size=st.integers(1, 3),
        accumulation=st.integers(1, 3),
        num_steps=st.integers(1, 5),
    ),
    min_size=1,
    max_size=5,
)
ORDERS = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 3),
        "mixture": st.sampled_from(MIXTURES),
        "shuffle": st.sampled_from(["full", "block"]),
        "shuffle_block_shards": st.integers(1, 4),
    }
)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> PackedDataset:
    dataset = PackedDataset(make_folder(tmp_path_factory.mktemp("resume") / "data", SIZES, shard_bytes=15_000))
    assert len(dataset.manifest.shards) > 8
    return dataset


def consume(dataset: PackedDataset, order: dict, segment: Segment, position: int) -> tuple[dict[int, tuple], int]:
    """What all ranks of the segment see, by global index: (sample's key, window); and the position after it."""
    train = TrainConfig(
        **order,
        global_batch_size=segment.global_batch_size,
        micro_batch_size=segment.micro_batch_size,
        loader_workers=segment.loader_workers,
    )
    seen: dict[int, tuple] = {}
    ends = set()
    for rank in range(segment.num_ranks):
        # Ranks read ahead beyond the stop, as a run that is stopped early does.
        source = BatchSource(
            open_stream(dataset, train),
            train,
            WINDOW,
            rank=rank,
            dp_size=segment.num_ranks,
            position=position,
            num_steps=segment.num_steps + 2,
        )
        for _ in range(segment.num_steps):
            step = source.next_step()
            assert len(step.micro_batches) == segment.accumulation
            for batch in step.micro_batches:
                assert len(batch.samples) == segment.micro_batch_size
                for drawn in batch.samples:
                    assert drawn.global_index not in seen and drawn.global_index < step.position
                    seen[drawn.global_index] = (drawn.sample.key, drawn.window)
        source.close()
        ends.add(step.position)
    (end,) = ends
    return seen, end


@settings(max_examples=40, deadline=None)
@given(order=ORDERS, segments=SEGMENTS)
def test_a_run_in_any_pieces_is_the_run_in_one(dataset: PackedDataset, order: dict, segments: list[Segment]) -> None:
    seen, position = {}, 0
    for segment in segments:
        more, end = consume(dataset, order, segment, position)
        assert sorted(more) == list(range(position, end)), "missed, repeated or out of its place"
        seen, position = seen | more, end
    in_one, _ = consume(dataset, order, Segment(1, 1, position, 1, 1), 0)
    assert seen == in_one
    keys = [seen[i][0] for i in range(position)]
    if order["mixture"] is None:
        every = {dataset[i].key for i in range(NUM_SLOTS)}
        assert all(set(keys[k : k + NUM_SLOTS]) == every for k in range(0, position - NUM_SLOTS + 1, NUM_SLOTS))
    for unit, (source, size) in enumerate(SIZES.items()):
        if order["mixture"] is None or source in order["mixture"]:
            own = [key for key in keys if key.startswith(f"{unit:05d}-")]
            passes = [own[k : k + size] for k in range(0, len(own), size)]
            assert all(max(Counter(p).values()) == 1 for p in passes), f"{source}: a sample twice in a pass"


def test_shares_of_an_epoch_are_those_of_the_mixture(dataset: PackedDataset) -> None:
    order = {"seed": 0, "mixture": MIXTURES[1], "shuffle": "full"}
    seen, end = consume(dataset, order, Segment(3, 2, 1, 13, 1), 0)
    assert end == NUM_SLOTS
    counts = Counter(key.split("-")[0] for key, _ in seen.values())
    assert counts == {"00000": 19, "00001": 10, "00002": 10}  # 19.5, 9.75, 9.75
