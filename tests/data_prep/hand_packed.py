"""Finished data folders of given samples, for tests of the tools that look at one."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from data_prep.manifest import complete_folder
from data_prep.packing import Pack
from data_prep.run_info import write_run_info
from data_prep.shard_checks import DROPPED
from data_prep.shard_writer import ShardWriter
from pipeline.data.shard_format import Manifest, ShardEntry

Units = Sequence[tuple[int, str, Sequence[Pack]]]


def whole(name: str, tokens: int, **changes: object) -> dict:
    """meta.json's entry of a whole document, or with `start` and `end` of a piece of one."""
    return {"id": name, "start": 0, "end": tokens, "tokens": tokens, "origin": {"bytes": 3 * tokens}} | changes


def pack(documents: list[dict], ids: np.ndarray | None = None, loss_mask: np.ndarray | None = None) -> Pack:
    """A sample of these documents; without `ids` its tokens count up from 0."""
    bounds = np.cumsum([0] + [piece["end"] - piece["start"] for piece in documents], dtype=np.int32)
    ids = np.arange(bounds[-1], dtype=np.uint32) if ids is None else ids
    return Pack(input_ids=ids, cu_seqlens=bounds, loss_mask=loss_mask, documents=documents)


def write_folder(
    folder: Path,
    units: Units,
    *,
    seq_len: int,
    sources: Mapping[str, dict] | None = None,
    tokenizer_name: str = "tiny",
    tokenizer_sha256: str = "0" * 64,
    shard_bytes: int = 25_000,
) -> Manifest:
    """Writes and completes a folder.

    Args:
        folder: made if it is not there.
        units: number, source and samples of each.
        seq_len: as the manifest says it.
        sources: name -> fields of its manifest entry that differ from the default; None: those of `units`.
        tokenizer_name: as the manifest says it.
        tokenizer_sha256: as the manifest says it.
        shard_bytes: size at which a unit's next shard begins.
    """
    folder.mkdir(exist_ok=True)
    shards: list[ShardEntry] = []
    for unit, source, packs in units:
        with ShardWriter(folder, unit, shard_bytes, source) as writer:
            for sample in packs:
                writer.write(sample)
        shards += writer.entries
    sources = {source: {} for _, source, _ in units} if sources is None else sources
    entries = [_source_entry(name, units) | changes for name, changes in sources.items()]
    manifest = Manifest(
        tokenizer_name=tokenizer_name,
        tokenizer_sha256=tokenizer_sha256,
        seq_len=seq_len,
        packing={"method": "concat"},
        sources=entries,
        shards=shards,
        inputs=[],
        dropped={kind: _sum([entry["dropped"][kind] for entry in entries]) for kind in DROPPED},
        totals=_sum([entry["totals"] for entry in entries]),
    )
    write_run_info(folder, {"host": "here", "seconds": 1.5})
    complete_folder(folder, manifest)
    return manifest


def _source_entry(name: str, units: Units) -> dict:
    packs = [sample for _, source, packs in units if source == name for sample in packs]
    begun = [piece for sample in packs for piece in sample.documents if piece["start"] == 0]
    totals = {
        "samples": len(packs),
        "tokens": sum(len(sample.input_ids) for sample in packs),
        "documents": len(begun),
        "text_bytes": sum(piece["origin"]["bytes"] for piece in begun),
        "cut_documents": sum(piece["end"] != piece["tokens"] for piece in begun),
        "duplicate_documents": 0,
    }
    labels = any(sample.loss_mask is not None for sample in packs)
    dropped: dict[str, dict[str, int]] = {"files": {}, "documents": {}, "tokens": {}}
    return {"name": name, "weight": None, "reading": {}, "labels": labels, "totals": totals, "dropped": dropped}


def _sum(counts: list[dict[str, int]]) -> dict[str, int]:
    return {name: sum(part.get(name, 0) for part in counts) for name in sorted({n for part in counts for n in part})}
