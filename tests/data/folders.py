"""Small packed folders without data_prep's pipeline around them: samples given one by one, source by source."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from data_prep.packing import Pack
from data_prep.shard_writer import ShardWriter
from pipeline.data.shard_format import (
    INDEX_DTYPE,
    MANIFEST_DIGEST_NAME,
    MANIFEST_NAME,
    Manifest,
    ShardEntry,
    completion_mark,
    sample_digest,
)
from pipeline.data.shard_io import END_OF_TAR, write_file
from pipeline.data.tar_members import npy_bytes


def finish_folder(
    folder: Path,
    shards: Sequence[ShardEntry],
    *,
    weights: Mapping[str, float | None] | None = None,
    tokenizer_name: str = "tiny",
    tokenizer_sha256: str = "0" * 64,
    seq_len: int = 16,
) -> Path:
    """Writes the manifest of `shards` and the completion mark; `weights`: the sources with their weights."""
    weights = weights or {shard.source: None for shard in shards}
    manifest = Manifest(
        tokenizer_name=tokenizer_name,
        tokenizer_sha256=tokenizer_sha256,
        seq_len=seq_len,
        packing={"method": "concat"},
        sources=[{"name": name, "weight": weight} for name, weight in weights.items()],
        shards=list(shards),
        inputs=[],
        dropped={},
    )
    raw = manifest.to_bytes()
    write_file(folder / MANIFEST_NAME, raw)
    write_file(folder / MANIFEST_DIGEST_NAME, completion_mark(raw))
    return folder


def make_folder(
    folder: Path,
    sizes: Mapping[str, int],
    *,
    weights: Mapping[str, float | None] | None = None,
    seq_len: int = 16,
    shard_bytes: int = 30_000,
    first_token: int = 0,
) -> Path:
    """A finished folder of `sizes[source]` samples of each source, all of `seq_len` tokens, one document each.

    The tokens of the folder's sample i are `first_token` + i * seq_len onwards, modulo 2^32.
    """
    folder.mkdir(parents=True)
    entries, number = [], 0
    for unit, (source, size) in enumerate(sizes.items()):
        with ShardWriter(folder, unit, shard_bytes, source) as writer:
            for _ in range(size):
                ids = (np.arange(seq_len) + number * seq_len + first_token).astype(np.uint32)
                document = {"id": f"d{number}", "start": 0, "end": seq_len, "tokens": seq_len, "origin": {}}
                writer.write(Pack(ids, np.array([0, seq_len], np.int32), None, [document]))
                number += 1
        entries += writer.entries
    return finish_folder(folder, entries, weights=weights or dict.fromkeys(sizes), seq_len=seq_len)


def make_raw_folder(folder: Path, raw: bytes, num_tokens: int = 3) -> Path:
    """A finished folder of one shard whose only sample is `raw`, with every size and digest as it should be."""
    folder.mkdir(parents=True)
    tar, index = raw + END_OF_TAR, np.array([(0, len(raw), num_tokens, sample_digest(raw))], INDEX_DTYPE)
    (folder / "shard-00000-000.tar").write_bytes(tar)
    (folder / "shard-00000-000.idx.npy").write_bytes(npy_bytes(index))
    digests = [hashlib.sha256(content).hexdigest() for content in (tar, npy_bytes(index))]
    sizes = len(tar), len(npy_bytes(index))
    entry = ShardEntry("shard-00000-000", "data", sizes[0], digests[0], sizes[1], digests[1], 1, num_tokens)
    return finish_folder(folder, [entry])
