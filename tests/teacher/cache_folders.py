"""Small data folders, and teacher caches of them with made-up signals that depend on key and position alone."""

import hashlib
from pathlib import Path

import numpy as np

from pipeline.data.dataset import PackedDataset
from pipeline.data.shard_format import sample_digest
from pipeline.teacher.cache_claims import claimed_shards
from pipeline.teacher.cache_format import PositionPolicy, TeacherInfo
from pipeline.teacher.cache_members import Compression
from pipeline.teacher.cache_writer import CacheShardWriter, begin_cache, complete_cache
from pipeline.teacher.signals import (
    HiddenSignal,
    HiddenSpec,
    SampledSignal,
    SampledSpec,
    Signal,
    SignalSpec,
    TopKSignal,
    TopKSpec,
)
from tests.data_prep.hand_packed import pack, whole, write_folder

VOCAB_SIZE = 320
SPECS: dict[str, SignalSpec] = {
    "hidden": HiddenSpec("bfloat16", 6),
    "int8": HiddenSpec("int8", 6),
    "topk": TopKSpec(4, VOCAB_SIZE),
    "sampled": SampledSpec(9, 5, VOCAB_SIZE),
}


def make_data(folder: Path, **changes: object) -> PackedDataset:
    """Seven shards of 16 samples: documents of 1 to 40 tokens; the last unit has labels, one sample without any set.

    Samples 3 and 13 have no position to supervise.
    """
    rng = np.random.default_rng(7)
    text = [(0, "text", [_sample(rng, f"0{n}", [1, 1] if n == 3 else None) for n in range(9)])]
    chat = [(4, "chat", [_sample(rng, f"4{n}", None, labels=n != 4) for n in range(7)])]
    write_folder(folder, [*text, *chat], seq_len=100, shard_bytes=12_000, **changes)
    dataset = PackedDataset(folder)
    assert len(dataset) == 16 and len(dataset.manifest.shards) == 7
    return dataset


def _sample(rng: np.random.Generator, name: str, lengths: list[int] | None, labels: bool | None = None) -> object:
    lengths = lengths or rng.integers(2, 41, 2).tolist()
    ids = rng.integers(0, VOCAB_SIZE, sum(lengths)).astype(np.uint32)
    mask = None if labels is None else (rng.random(len(ids)) < 0.7 * labels).astype(np.uint8)
    return pack([whole(f"{name}-{number}", length) for number, length in enumerate(lengths)], ids, mask)


def make_info(
    dataset: PackedDataset, kind: str = "hidden", min_budget: int = 0, compression: Compression = "zstd"
) -> TeacherInfo:
    """teacher.json of a cache of that data."""
    policy = PositionPolicy("past_budget", min_budget) if min_budget else PositionPolicy("all")
    tokenizer = dataset.manifest.tokenizer_sha256
    hashes = "ab" * 32, tokenizer, dataset.fingerprint
    chunk_size = 256 if kind in ("topk", "sampled") else None
    return TeacherInfo("tiny teacher", "float32", *hashes, SPECS[kind], policy, compression, None, chunk_size)


def make_signal(spec: SignalSpec, key: str, positions: np.ndarray) -> Signal:
    """The made-up signal of those positions of the sample `key`."""
    seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "big")
    rngs = [np.random.default_rng([seed, int(position)]) for position in positions]
    if isinstance(spec, HiddenSpec):
        hidden = [rng.normal(size=spec.hidden_size) for rng in rngs]
        return HiddenSignal.encode(spec, np.array(hidden, np.float32).reshape(-1, spec.hidden_size))
    if isinstance(spec, TopKSpec):
        probs = np.array([rng.dirichlet(np.ones(spec.vocab_size)) for rng in rngs]).reshape(-1, spec.vocab_size)
        ids = np.argsort(-probs, 1)[:, : spec.k].astype(np.uint32)
        top = np.take_along_axis(probs, ids.astype(np.int64), 1)
        return TopKSignal(spec, ids, np.log(top).astype(np.float16), np.log1p(-top.sum(1)).astype(np.float32))
    drawn = [np.unique(rng.integers(0, spec.vocab_size, spec.num_draws), return_counts=True) for rng in rngs]
    ids, counts = (np.concatenate([pair[n] for pair in drawn] or [np.empty(0)]) for n in (0, 1))
    num_ids = np.array([len(pair[0]) for pair in drawn], np.uint16)
    entropy = np.array([rng.uniform(0, np.log(spec.vocab_size)) for rng in rngs], np.float32)
    return SampledSignal(spec, num_ids, ids.astype(np.uint32), counts.astype(spec.count_dtype), entropy)


def write_shard(cache: Path, dataset: PackedDataset, info: TeacherInfo, number: int) -> None:
    """Writes the cache's shard for the data's shard of that number."""
    shards = dataset.manifest.shards
    first = sum(entry.num_samples for entry in shards[:number])
    with CacheShardWriter(cache, shards[number]) as writer:
        for index in range(first, first + shards[number].num_samples):
            sample = dataset[index]
            positions = info.positions.select(sample)
            writer.write(sample.key, positions, make_signal(info.signal, sample.key, positions))


def write_missing(cache: Path, dataset: PackedDataset, info: TeacherInfo) -> list[int]:
    """Writes what nobody else is writing; returns the numbers of those shards."""
    written = []
    for entry in claimed_shards(cache, dataset.manifest):
        written.append(dataset.manifest.shards.index(entry))
        write_shard(cache, dataset, info, written[-1])
    return written


def make_cache(
    cache: Path, dataset: PackedDataset, kind: str = "hidden", min_budget: int = 0, compression: Compression = "zstd"
) -> TeacherInfo:
    """A finished cache; goes on where an earlier call was killed."""
    info = make_info(dataset, kind, min_budget, compression)
    begin_cache(cache, info)
    write_missing(cache, dataset, info)
    assert complete_cache(cache, dataset, {"host": "here", "seconds": 1.5})
    return info


def rekey(cache: Path, shard: str, digest_key: bytes) -> None:
    """Gives a shard's index the digests that its samples would have in the cache with that key."""
    index, tar = np.load(cache / f"{shard}.idx.npy"), (cache / f"{shard}.tar").read_bytes()
    for row in index:
        row["digest"] = sample_digest(tar[row["offset"] : row["offset"] + row["length"]], digest_key)
    np.save(cache / f"{shard}.idx.npy", index)


def content(folder: Path) -> dict[str, bytes]:
    """Every file that must be the same in an equal run."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "run.json"}
