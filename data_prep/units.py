"""Work units: parts of the input that are read, packed and written on their own, by whichever process is free.

Units depend only on the input and the configuration. A best-fit unit leaves the pieces of its emptiest samples in a
file; when all units are done, leftover units pack those of LEFTOVER_GROUP units each together.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Literal

from data_prep.dedup import Duplicates, hashes_path, save_hashes
from data_prep.documents import DocumentReader, DocumentSpec, hash_documents
from data_prep.packing import (
    MAX_LEFTOVER_SAMPLES,
    BestFit,
    Pack,
    Piece,
    TokenisedDocument,
    cut_long,
    join,
    pack_concat,
    pack_none,
    split,
)
from data_prep.readers import Extent
from data_prep.receipts import UNITS_FOLDER, UnitReceipt, leftovers_path
from data_prep.shard_writer import ShardWriter, encode_sample
from data_prep.sources import Source
from pipeline.data.shard_format import DataError, PackedSample, decode_sample
from pipeline.data.shard_io import write_file

LEFTOVER_GROUP = 16
MAX_UNITS = 100_000


@dataclass(frozen=True)
class PackingSpec:
    """How documents become samples and samples become files; `seq_len` in tokens, sizes in bytes."""

    seq_len: int
    method: Literal["best_fit", "concat", "none"]
    unit_bytes: int
    shard_bytes: int


@dataclass(frozen=True, eq=False)
class Unit:
    """One work unit, with everything that another process needs for it."""

    number: int
    source: Source
    extents: tuple[Extent, ...]
    documents: DocumentSpec
    packing: PackingSpec
    folder: Path
    duplicates: Duplicates | None = None

    @property
    def size(self) -> int:
        return sum(extent.size for extent in self.extents)

    @property
    def scratch(self) -> Path:
        return self.folder / UNITS_FOLDER


@dataclass(frozen=True)
class LeftoverUnit:
    """The leftovers of units of one source, to be packed together; `size` in bytes."""

    number: int
    source: str
    parts: tuple[int, ...]
    packing: PackingSpec
    folder: Path
    size: int


def group(extents: Iterable[Extent], unit_bytes: int) -> Iterator[tuple[Extent, ...]]:
    """Cuts extents, in order, into groups of at most `unit_bytes`; a larger one is a group of its own."""
    members: list[Extent] = []
    size = 0
    for extent in extents:
        if members and size + extent.size > unit_bytes:
            yield tuple(members)
            members, size = [], 0
        members.append(extent)
        size += extent.size
    if members:
        yield tuple(members)


def hash_unit(unit: Unit) -> None:
    """Saves the hashes of the unit's documents, unless they are there."""
    if not hashes_path(unit.scratch, unit.number).is_file():
        save_hashes(unit.scratch, unit.number, hash_documents(unit.extents, unit.source))


def process_unit(unit: Unit) -> UnitReceipt:
    """Reads, tokenises, packs and writes one unit; its receipt is saved when all its files are on disk.

    Raises:
        DataError: an input that cannot be read, or a folder that cannot be written.
    """
    duplicates = unit.duplicates.load() if unit.duplicates else None
    reader = DocumentReader(unit.source, unit.documents, duplicates, unit.scratch)
    best_fit = BestFit(unit.packing.seq_len, MAX_LEFTOVER_SAMPLES)
    try:
        with _writer(unit, unit.source.name) as writer:
            for pack in _pack(reader.read(unit.extents), unit.packing, best_fit):
                writer.write(pack)
        leftovers = _save_leftovers(unit.folder, unit.number, best_fit.leftovers) if best_fit.leftovers else None
        if duplicates is None:
            save_hashes(unit.scratch, unit.number, bytes(reader.hashes))
        counts = reader.counts
        receipt = UnitReceipt(
            unit=unit.number,
            source=unit.source.name,
            shards=writer.entries,
            cut_documents=writer.num_cut_documents,
            dropped={name: dict(reasons) for name, reasons in counts.dropped.items() if reasons},
            ignored={name: dict(fields) for name, fields in counts.ignored.items() if fields},
            documents=counts.documents,
            text_bytes=counts.text_bytes,
            num_fallbacks=counts.num_fallbacks,
            leftovers=leftovers,
        )
        receipt.save(unit.folder)
    except OSError as error:
        raise _unwritable(unit.folder, error) from error
    return receipt


def process_leftovers(unit: LeftoverUnit) -> UnitReceipt:
    """Packs what the units of `parts` left over.

    Raises:
        DataError: as `process_unit`, or a file of leftovers that was altered.
    """
    pieces = (piece for part in unit.parts for piece in _load_leftovers(unit.folder, part))
    try:
        with _writer(unit, unit.source) as writer:
            for pack in BestFit(unit.packing.seq_len).pack(pieces):
                writer.write(pack)
        receipt = UnitReceipt(unit.number, unit.source, writer.entries, writer.num_cut_documents)
        receipt.save(unit.folder)
    except OSError as error:
        raise _unwritable(unit.folder, error) from error
    return receipt


def _writer(unit: Unit | LeftoverUnit, source: str) -> ShardWriter:
    return ShardWriter(unit.folder, unit.number, unit.packing.shard_bytes, source)


def _unwritable(folder: Path, error: OSError) -> DataError:
    return DataError(
        f"--output {folder} cannot be written ({error.strerror or error}); make room and run again to go on"
    )


def _pack(documents: Iterable[TokenisedDocument], packing: PackingSpec, best_fit: BestFit) -> Iterator[Pack]:
    if packing.method == "best_fit":
        return best_fit.pack(cut_long(documents, packing.seq_len))
    return {"concat": pack_concat, "none": pack_none}[packing.method](documents, packing.seq_len)


def _save_leftovers(folder: Path, unit: int, pieces: list[Piece]) -> str:
    """Writes the pieces as one sample; returns the file's sha256 (hex)."""
    pack = join(pieces)
    raw = encode_sample(
        PackedSample(f"{unit:05d}", pack.input_ids, pack.cu_seqlens, pack.loss_mask, {"documents": pack.documents})
    )
    write_file(leftovers_path(folder, unit), raw)
    return sha256(raw).hexdigest()


def _load_leftovers(folder: Path, unit: int) -> Iterator[Piece]:
    path = leftovers_path(folder, unit)
    sample = decode_sample(path.read_bytes(), str(path))
    yield from split(Pack(sample.input_ids, sample.cu_seqlens, sample.loss_mask, sample.meta["documents"]))
