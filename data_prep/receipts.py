"""What an unfinished folder knows of its finished work units: one receipt for each, checked against its files."""

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from pipeline.data.shard_format import ShardEntry
from pipeline.data.shard_io import write_file

UNITS_FOLDER = ".units"


@dataclass(frozen=True)
class UnitReceipt:
    """One finished work unit.

    `dropped` counts the documents left out, by input name and reason; `ignored` fields of conversations that nothing
    read, by input name and field; `documents` and `text_bytes` (UTF-8) are those
    that were packed; `cut_documents` end in the unit's samples and began in others; `num_fallbacks` counts texts that
    the fast tokenizer gave up on; `leftovers` is the sha256 of the file of pieces still to be packed.
    """

    unit: int
    source: str
    shards: list[ShardEntry]
    cut_documents: int
    dropped: dict[str, dict[str, int]] = field(default_factory=dict)
    ignored: dict[str, dict[str, int]] = field(default_factory=dict)
    documents: int = 0
    text_bytes: int = 0
    num_fallbacks: int = 0
    leftovers: str | None = None

    def save(self, folder: Path) -> None:
        write_file(receipt_path(folder, self.unit), json.dumps(asdict(self)).encode())


def load_receipt(folder: Path, unit: int) -> UnitReceipt | None:
    """The unit's receipt if the unit is finished and its files are still what the receipt says, else None."""
    path = receipt_path(folder, unit)
    if not path.is_file():
        return None
    try:
        fields = json.loads(path.read_bytes())
        fields["shards"] = [ShardEntry(**shard) for shard in fields["shards"]]
        receipt = UnitReceipt(**fields)
    except (ValueError, KeyError, TypeError):  # damaged: the unit is done again
        return None
    files: list[tuple[Path, int | None, str]] = []
    for shard in receipt.shards:
        files.append((folder / shard.tar_name, shard.size, shard.sha256))
        files.append((folder / shard.index_name, shard.index_size, shard.index_sha256))
    if receipt.leftovers is not None:
        files.append((leftovers_path(folder, unit), None, receipt.leftovers))
    return receipt if all(file_matches(*file) for file in files) else None


def file_matches(path: Path, size: int | None, sha256: str) -> bool:
    """Whether the file is there with this size (None: any) and content."""
    if not path.is_file() or (size is not None and path.stat().st_size != size):
        return False
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest() == sha256


def receipt_path(folder: Path, unit: int) -> Path:
    return folder / UNITS_FOLDER / f"{unit:05d}.json"


def leftovers_path(folder: Path, unit: int) -> Path:
    return folder / UNITS_FOLDER / f"{unit:05d}.leftovers.tar"
