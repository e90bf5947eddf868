"""manifest.json and run.json: what a folder holds, which parameters made it, and how far a run has come.

While a run is under way `.units/` holds plan.json (the parameters and inputs) and one receipt for each
finished work unit. Finishing writes manifest.json, then the completion mark, then removes `.units/`; a kill
in between leaves a folder that the next run finishes with the same bytes.
"""

import hashlib
import json
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from data_prep.receipts import UNITS_FOLDER, UnitReceipt
from pipeline.data.shard_format import (
    MANIFEST_DIGEST_NAME,
    MANIFEST_NAME,
    DataError,
    Manifest,
    completion_mark,
)
from pipeline.data.shard_io import TEMPORARY_SUFFIX, write_file
from pipeline.folder_claim import OWNER_NAME

PLAN_NAME = "plan.json"


def sum_up(planned: Manifest, receipts: list[UnitReceipt], duplicates: dict[str, int]) -> Manifest:
    """The finished folder's manifest: the planned one with shards, dropped documents and totals filled in.

    Args:
        planned: parameters, sources and inputs.
        receipts: of all units, in order.
        duplicates: documents whose text an earlier one has, by source.
    """
    dropped: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    ignored: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for receipt in receipts:
        for name, reasons in receipt.dropped.items():
            dropped[receipt.source, name].update(reasons)
        for name, fields in receipt.ignored.items():
            ignored[receipt.source, name].update(fields)
    sources = [
        _sum_up_source(entry, [r for r in receipts if r.source == entry["name"]], duplicates[entry["name"]])
        for entry in planned.sources
    ]
    return replace(
        planned,
        sources=sources,
        shards=[shard for receipt in receipts for shard in receipt.shards],
        inputs=[
            {**entry, "dropped": dict(dropped[key])} | ({"ignored_fields": dict(ignored[key])} if ignored[key] else {})
            for entry in planned.inputs
            for key in [(entry["source"], entry["name"])]
        ],
        dropped={kind: _add([s["dropped"][kind] for s in sources]) for kind in ("files", "documents")},
        totals=_add([s["totals"] for s in sources]),
    )


def _sum_up_source(planned: dict, receipts: list[UnitReceipt], num_duplicates: int) -> dict:
    shards = [shard for receipt in receipts for shard in receipt.shards]
    totals = {
        "samples": sum(shard.num_samples for shard in shards),
        "tokens": sum(shard.num_tokens for shard in shards),
        "documents": sum(receipt.documents for receipt in receipts),
        "text_bytes": sum(receipt.text_bytes for receipt in receipts),
        "cut_documents": sum(receipt.cut_documents for receipt in receipts),
        "duplicate_documents": num_duplicates,
    }
    reasons = _add([counts for receipt in receipts for counts in receipt.dropped.values()])
    return {**planned, "totals": totals, "dropped": {**planned["dropped"], "documents": reasons}}


def _add(counts: Iterable[dict[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for part in counts:
        total.update(part)
    return dict(total)


def complete_folder(folder: Path, manifest: Manifest) -> None:
    """Writes the manifest, then the completion mark, and only then removes what a rerun would have needed."""
    raw = manifest.to_bytes()
    write_file(folder / MANIFEST_NAME, raw)
    write_file(folder / MANIFEST_DIGEST_NAME, completion_mark(raw))
    remove_scratch(folder)


def remove_scratch(folder: Path) -> None:
    """Removes the receipts and other files that only an unfinished run needs."""
    if (folder / UNITS_FOLDER).is_dir():
        shutil.rmtree(folder / UNITS_FOLDER)
    if (folder / OWNER_NAME).is_file():
        (folder / OWNER_NAME).unlink()


def remove_temporary_files(folder: Path) -> None:
    """Removes what a killed run was writing."""
    for leftover in folder.rglob(f"*{TEMPORARY_SUFFIX}"):
        leftover.unlink(missing_ok=True)


def save_plan(folder: Path, planned: Manifest) -> None:
    """Records what an unfinished folder is going to hold."""
    write_file(folder / UNITS_FOLDER / PLAN_NAME, planned.to_bytes())


def load_plan(folder: Path) -> Manifest | None:
    """The manifest of a finished or the plan of an unfinished folder; None where there is neither.

    Raises:
        DataError: the manifest was altered, or the plan is damaged.
    """
    if (folder / MANIFEST_DIGEST_NAME).is_file():
        return Manifest.load(folder)
    for path in (folder / UNITS_FOLDER / PLAN_NAME, folder / MANIFEST_NAME):
        if path.is_file():
            try:
                return Manifest(**json.loads(path.read_bytes()))
            except (ValueError, TypeError) as error:
                raise DataError(
                    f"{path} is damaged or of another version ({error}); delete {folder} and run again"
                ) from error
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
    identity = [(entry["source"], entry["name"], entry["format"], entry["sha256"]) for entry in manifest.inputs]
    digest = hashlib.sha256(json.dumps(identity).encode()).hexdigest()
    by_source = {
        f"source {source['name']}: {name}": value
        for source in manifest.sources
        for name, value in {"weight": source["weight"], **source["reading"]}.items()
    }
    return {
        "format_version": manifest.format_version,
        "tokenizer": f"{manifest.tokenizer_name} ({manifest.tokenizer_sha256[:12]})",
        "seq_len": manifest.seq_len,
        "input": f"{len(identity)} files ({digest[:12]})",
        **manifest.packing,
        **by_source,
    }
