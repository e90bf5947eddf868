"""What must hold in a packed folder, one check a function: manifest, indexes, samples."""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_prep.run_info import check_run_info
from data_prep.shard_reader import read_sample_bytes
from data_prep.shard_writer import encode_sample, sample_key, shard_name
from pipeline.data.shard_format import (
    MANIFEST_DIGEST_NAME,
    MANIFEST_NAME,
    RUN_INFO_NAME,
    DataError,
    Manifest,
    PackedSample,
    ShardEntry,
    decode_sample,
    load_index,
)
from pipeline.data.shard_io import END_OF_TAR
from pipeline.folder_claim import OWNER_NAME

UNIT_OF_NAME = re.compile(r"shard-(\d{1,18})-")
SAMPLE_TOTALS = ("samples", "tokens")
DOCUMENT_TOTALS = ("documents", "text_bytes", "cut_documents")
TOTALS = (*SAMPLE_TOTALS, *DOCUMENT_TOTALS, "duplicate_documents")
SOURCE_FIELDS = {"name", "weight", "labels", "totals", "dropped"}
DROPPED = ("files", "documents", "tokens")


@dataclass(frozen=True)
class PlacedShard:
    """A shard with what its place in the folder says of its samples."""

    entry: ShardEntry
    unit: int
    first_number: int
    """Number within the unit of the shard's first sample."""
    labels: bool


def check_file_list(folder: Path, manifest: Manifest) -> None:
    """Raises DataError for a file that is missing, not listed or of another size than the manifest says, and for a bad
    run.json.
    """
    listed = {MANIFEST_NAME, MANIFEST_DIGEST_NAME, RUN_INFO_NAME}
    listed |= {name for entry in manifest.shards for name in (entry.tar_name, entry.index_name)}
    present = {path.name for path in folder.iterdir()}
    for name in sorted(listed - present):
        raise DataError(f"{folder / name} is missing")
    for name in sorted(present - listed - {OWNER_NAME}):
        raise DataError(f"{folder / name} is not listed in {MANIFEST_NAME}")
    for entry in manifest.shards:
        for name, size in ((entry.tar_name, entry.size), (entry.index_name, entry.index_size)):
            found = (folder / name).stat().st_size
            if found != size:
                raise DataError(f"{folder / name} has {found} bytes, the manifest says {size}")
    check_run_info(folder)


def check_manifest(folder: Path, manifest: Manifest) -> None:
    """Raises DataError where the manifest's sums are not those of its sources."""
    path = folder / MANIFEST_NAME
    for source in manifest.sources:
        lacking = ", ".join(sorted(SOURCE_FIELDS - source.keys()))
        if lacking:
            raise DataError(f"{path} lists a source without {lacking}: {source['name']}")
        if lacking := ", ".join(name for name in TOTALS if name not in source["totals"]):
            raise DataError(f"{path} lists no total of {lacking} of source {source['name']}")
    names = [source["name"] for source in manifest.sources]
    if len(set(names)) != len(names):
        raise DataError(f"{path} lists two sources of one name among {', '.join(names)}")
    for name in TOTALS:
        of_sources = sum(source["totals"][name] for source in manifest.sources)
        if manifest.totals.get(name) != of_sources:
            raise DataError(f"{path} totals {manifest.totals.get(name)} {name}, its sources {of_sources}")
    for kind in DROPPED:
        summed: Counter[str] = Counter()
        for source in manifest.sources:
            summed.update(source["dropped"].get(kind, {}))
        if +Counter(manifest.dropped.get(kind, {})) != +summed:
            raise DataError(
                f"{path} says that {manifest.dropped.get(kind, {})} {kind} were dropped, its sources {dict(summed)}"
            )


def place_shards(folder: Path, manifest: Manifest) -> Iterator[PlacedShard]:
    """The manifest's shards in order.

    Raises:
        DataError: a shard that is out of order or of an unknown source.
    """
    path, labels = folder / MANIFEST_NAME, {source["name"]: source["labels"] for source in manifest.sources}
    unit, number, next_sample, last_name = -1, 0, 0, ""
    for entry in manifest.shards:
        match = UNIT_OF_NAME.match(entry.name)
        if match and int(match[1]) > unit:
            unit, number, next_sample = int(match[1]), 0, 0
        if entry.name != shard_name(unit, number):
            raise DataError(f"{path} lists {entry.name} after {last_name or 'nothing'}: not in order")
        if entry.source not in labels:
            raise DataError(f"{path}: {entry.name} is of source {entry.source!r}, which is none of {', '.join(labels)}")
        yield PlacedShard(entry, unit, next_sample, labels[entry.source])
        number, next_sample, last_name = number + 1, next_sample + entry.num_samples, entry.name


def load_checked_index(folder: Path, entry: ShardEntry) -> np.ndarray:
    """The shard's index, INDEX_DTYPE [num_samples], whose samples follow each other and end where the tar does.

    Raises:
        DataError: names the file that is missing or does not match.
    """
    index, path = load_index(folder, entry), folder / entry.index_name
    ends = np.cumsum(index["length"])
    starts = ends - index["length"]
    wrong = np.flatnonzero((index["offset"] != starts) | (index["length"] <= 0))
    if len(wrong):
        number = int(wrong[0])
        raise DataError(
            f"{path}: sample {number} begins at byte {starts[number]} of the tar, the index says "
            f"{index['offset'][number]} (and {index['length'][number]} bytes)"
        )
    end = int(ends[-1]) if len(index) else 0
    if end + len(END_OF_TAR) != entry.size:
        raise DataError(
            f"{folder / entry.tar_name} does not end after the last sample of {entry.index_name} (byte {end})"
        )
    return index


def read_checked_sample(
    descriptor: int, folder: Path, shard: PlacedShard, number: int, row: np.void, seq_len: int
) -> tuple[bytes, PackedSample]:
    """Sample `number` of the shard: its bytes in the tar and what they say.

    Raises:
        DataError: it is damaged, contradicts itself, its index or its place, or is not written as the format says.
    """
    where = f"{folder / shard.entry.tar_name}: sample {number}"
    raw = read_sample_bytes(descriptor, row, where)
    sample, expected = decode_sample(raw, where), sample_key(shard.unit, shard.first_number + number)
    if sample.key != expected:
        raise DataError(f"{where} has key {sample.key}, expected {expected}")
    if len(sample.input_ids) != row["tokens"]:
        raise DataError(f"{where} has {len(sample.input_ids)} tokens, its index says {row['tokens']}")
    if len(sample.input_ids) > seq_len:
        raise DataError(f"{where} has {len(sample.input_ids)} tokens, more than seq_len {seq_len}")
    if (sample.loss_mask is not None) != shard.labels:
        has = "has no" if sample.loss_mask is None else "has a"
        says = "labels" if shard.labels else "no labels"
        raise DataError(f"{where} {has} loss_mask, but its source {shard.entry.source!r} has {says}")
    if sample.loss_mask is not None and sample.loss_mask.max() > 1:
        raise DataError(f"{where}: loss_mask holds {sample.loss_mask.max()}, not only 0 and 1")
    _check_pieces(sample, where)
    if not _is_as_written(sample, raw):
        raise DataError(f"{where} holds the right arrays but not byte for byte as this format writes them")
    return raw, sample


def _is_as_written(sample: PackedSample, raw: bytes) -> bool:
    try:
        return encode_sample(sample) == raw
    except (UnicodeEncodeError, RecursionError):  # half a surrogate pair, or nested too deeply to be written
        return False


def _check_pieces(sample: PackedSample, where: str) -> None:
    for piece, length in zip(sample.meta["documents"], np.diff(sample.cu_seqlens), strict=True):
        whole_numbers = isinstance(piece, dict) and all(type(piece.get(n)) is int for n in ("start", "end", "tokens"))
        if not whole_numbers or not isinstance(piece.get("id"), str) or not isinstance(piece.get("origin"), dict):
            raise DataError(f"{where}: meta.json lists a document without id, start, end, tokens or origin: {piece}")
        num_bytes = piece["origin"].get("bytes", 0)
        if type(num_bytes) is not int or num_bytes < 0:
            raise DataError(f"{where}: meta.json says that document {piece['id']} has {num_bytes!r} bytes")
        inside = 0 <= piece["start"] < piece["end"] <= piece["tokens"]
        if not inside or piece["end"] - piece["start"] != length:
            raise DataError(
                f"{where}: meta.json says tokens {piece['start']} to {piece['end']} of {piece['tokens']} "
                f"of {piece['id']}, cu_seqlens says {length} tokens"
            )
