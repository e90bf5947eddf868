"""manifest.json and run.json: what a folder holds, which parameters made it, and how far a run has come.

While a run is under way `.units/` holds plan.json (the parameters and inputs) and one receipt for each
finished work unit. Finishing writes manifest.json, removes `.units/`, and writes the completion mark last; a
kill in between leaves an unfinished folder whose next run makes the same bytes.
"""

import hashlib
import json
import shutil
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

from data_prep.shard_writer import write_file
from pipeline.data.shard_format import (
    MANIFEST_DIGEST_NAME,
    MANIFEST_NAME,
    DataError,
    Manifest,
    ShardEntry,
    completion_mark,
)

UNITS_FOLDER = ".units"
PLAN_NAME = "plan.json"
MAX_LISTED = 20


@dataclass(frozen=True)
class UnitReceipt:
    """One finished work unit.

    `dropped` counts the documents left out, by input name and reason; `documents` and `input_bytes` (of text,
    in UTF-8) are those that were packed.
    """

    unit: int
    shards: list[ShardEntry]
    dropped: dict[str, dict[str, int]]
    documents: int
    text_bytes: int

    def save(self, folder: Path) -> None:
        write_file(_receipt_path(folder, self.unit), json_bytes(asdict(self)))


def load_receipt(folder: Path, unit: int) -> UnitReceipt | None:
    """The unit's receipt if the unit is finished and its files are still what the receipt says, else None."""
    path = _receipt_path(folder, unit)
    if not path.is_file():
        return None
    fields = json.loads(path.read_bytes())
    fields["shards"] = [ShardEntry(**shard) for shard in fields["shards"]]
    receipt = UnitReceipt(**fields)
    intact = all(
        file_matches(folder / name, size, digest)
        for shard in receipt.shards
        for name, size, digest in (
            (shard.tar_name, shard.size, shard.sha256),
            (shard.index_name, shard.index_size, shard.index_sha256),
        )
    )
    return receipt if intact else None


def file_matches(path: Path, size: int, sha256: str) -> bool:
    """Whether the file is there with this size and content."""
    if not path.is_file() or path.stat().st_size != size:
        return False
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest() == sha256


def _receipt_path(folder: Path, unit: int) -> Path:
    return folder / UNITS_FOLDER / f"{unit:05d}.json"


def json_bytes(content: dict) -> bytes:
    return (json.dumps(content, indent=1, sort_keys=True) + "\n").encode()


def sum_up(planned: Manifest, receipts: list[UnitReceipt]) -> Manifest:
    """The finished folder's manifest: the planned one with shards, dropped documents and totals filled in."""
    dropped = {name: counts for receipt in receipts for name, counts in receipt.dropped.items()}
    reasons: Counter[str] = Counter()
    for counts in dropped.values():
        reasons.update(counts)
    shards = [shard for receipt in receipts for shard in receipt.shards]
    return Manifest(
        tokenizer_name=planned.tokenizer_name,
        tokenizer_sha256=planned.tokenizer_sha256,
        seq_len=planned.seq_len,
        packing=planned.packing,
        reading=planned.reading,
        shards=shards,
        inputs=[{**entry, "dropped": dropped.get(entry["name"], {})} for entry in planned.inputs],
        dropped={**planned.dropped, "documents": dict(reasons), "tokens": {}},
        totals={
            "samples": sum(shard.num_samples for shard in shards),
            "tokens": sum(shard.num_tokens for shard in shards),
            "documents": sum(receipt.documents for receipt in receipts),
            "text_bytes": sum(receipt.text_bytes for receipt in receipts),
        },
    )


def complete_folder(folder: Path, manifest: Manifest) -> None:
    """Writes the manifest and, last, the completion mark."""
    raw = manifest.to_bytes()
    write_file(folder / MANIFEST_NAME, raw)
    if (folder / UNITS_FOLDER).is_dir():
        shutil.rmtree(folder / UNITS_FOLDER)
    write_file(folder / MANIFEST_DIGEST_NAME, completion_mark(raw))


def save_plan(folder: Path, planned: Manifest) -> None:
    """Records what an unfinished folder is going to hold."""
    (folder / UNITS_FOLDER).mkdir(exist_ok=True)
    write_file(folder / UNITS_FOLDER / PLAN_NAME, planned.to_bytes())


def load_plan(folder: Path) -> Manifest | None:
    """The manifest of a finished or the plan of an unfinished folder; None where there is neither.

    Raises:
        DataError: the finished folder's manifest was altered.
    """
    if (folder / MANIFEST_DIGEST_NAME).is_file():
        return Manifest.load(folder)
    for path in (folder / UNITS_FOLDER / PLAN_NAME, folder / MANIFEST_NAME):
        if path.is_file():
            return Manifest(**json.loads(path.read_bytes()))
    return None


def check_same_parameters(folder: Path, found: Manifest, planned: Manifest) -> None:
    """Refuses to mix two runs in one folder.

    Raises:
        DataError: names the folder and every parameter that differs, with both values.
    """
    there, asked = _parameters(found), _parameters(planned)
    differing = [
        f"{name} is {there.get(name)} there, {asked.get(name)} now"
        for name in sorted(there.keys() | asked.keys())
        if there.get(name) != asked.get(name)
    ]
    if differing:
        raise DataError(
            f"--output {folder} holds data made with other parameters ({'; '.join(differing)}); "
            f"choose another folder or delete that one"
        )


def _parameters(manifest: Manifest) -> dict[str, object]:
    """What decides the folder's content, flat: parameter -> value; inputs as one digest and their number."""
    identity = [(entry["name"], entry["format"], entry["sha256"]) for entry in manifest.inputs]
    digest = hashlib.sha256(json.dumps(identity).encode()).hexdigest()
    return {
        "format_version": manifest.format_version,
        "tokenizer": f"{manifest.tokenizer_name} ({manifest.tokenizer_sha256[:12]})",
        "seq_len": manifest.seq_len,
        "input": f"{len(identity)} files ({digest[:12]})",
        **manifest.packing,
        **manifest.reading,
    }


def describe(manifest: Manifest) -> str:
    """What the folder holds and what was left out of it, in a few lines."""
    totals = manifest.totals
    lines = [
        f"{totals['tokens']:,} tokens of {totals['documents']:,} documents in {totals['samples']:,} samples "
        f"of up to {manifest.seq_len:,} ({len(manifest.shards)} shards); fingerprint {manifest.sha256[:12]}"
    ]
    skipped = {reason: count for reason, count in manifest.dropped["files"].items() if count}
    if skipped:
        lines.append("files left out: " + _counts(skipped))
    if manifest.dropped["documents"]:
        lines.append("documents dropped: " + _counts(manifest.dropped["documents"]))
        affected = [entry for entry in manifest.inputs if entry["dropped"]]
        lines += [f"  {entry['name']}: {_counts(entry['dropped'])}" for entry in affected[:MAX_LISTED]]
        if len(affected) > MAX_LISTED:
            lines.append(f"  and {len(affected) - MAX_LISTED} more files: see {MANIFEST_NAME}")
    return "\n".join(lines)


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {reason}" for reason, count in sorted(counts.items()))
