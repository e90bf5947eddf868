"""Documents in, a finished packed folder out.

The input is cut into work units that depend only on the input and the configuration; each unit is read, tokenised,
packed and written on its own, so the folder's bytes are the same for any number of workers, and a run that was killed
goes on with the units that are missing.
"""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, Literal, TypeVar

from tqdm import tqdm

from data_prep.dedup import mark_duplicates
from data_prep.documents import DocumentSpec
from data_prep.manifest import (
    check_same_parameters,
    complete_folder,
    load_plan,
    remove_scratch,
    remove_temporary_files,
    save_plan,
    sum_up,
)
from data_prep.plan import (
    Inspections,
    SourceInputs,
    check_apart,
    fetch_dataset,
    find_files,
    make_units,
    plan_manifest,
    sample_texts,
    warn_if_longer_than_model,
    with_datasets_of,
)
from data_prep.readers import Inspection
from data_prep.receipts import UNITS_FOLDER, UnitReceipt, leftovers_path, load_receipt, receipt_path
from data_prep.run_info import write_run_info
from data_prep.sources import Source
from data_prep.summary import describe_counts
from data_prep.tokenization import resolve_tokenizer
from data_prep.tokenizer_check import BackendChoice, choose_backend
from data_prep.units import LEFTOVER_GROUP, LeftoverUnit, PackingSpec, Unit, hash_unit, process_leftovers, process_unit
from data_prep.workers import OrderedMap, watched
from pipeline.data.shard_format import MANIFEST_DIGEST_NAME, DataError, Manifest
from pipeline.errors import escape_controls
from pipeline.folder_claim import OWNER_NAME, FolderClaim, claimed_folder
from pipeline.provenance import describe_start

RECORDED_VERSIONS = ("transformers", "tokenizers", "tiktoken", "numpy", "pyarrow", "fsspec")
AnyUnit = TypeVar("AnyUnit", Unit, LeftoverUnit)


@dataclass(frozen=True)
class PrepareSpec:
    """What to do with the documents.

    `tokenizer`: folder or hub id. `max_doc_tokens`: None for no limit. `dedup`: whether copies of a document are left
    out or only counted. `tokenizer_backend`: `tokenizers` forgoes the fast encoder; the ids are the same.
    """

    tokenizer: str
    packing: PackingSpec
    append_eos: bool = True
    special_tokens_in_text: Literal["plain", "special"] = "plain"
    min_doc_tokens: int = 0
    max_doc_tokens: int | None = None
    dedup: Literal["count", "exact"] = "count"
    tokenizer_backend: Literal["auto", "tokenizers"] = "auto"


def prepare(sources: Sequence[Source], output: Path, spec: PrepareSpec, run: OrderedMap = map) -> Manifest:
    """Makes (or goes on making) the packed folder `output`; a finished one of the same parameters is left alone.

    Args:
        sources: in the order that decides which of equal documents is the first.
        run: maps a function over tasks, in order; see data_prep.workers.

    Raises:
        DataError: what is wrong with the sources, the tokenizer or the folder, in one line.
        UserError: another run has the folder, or has taken it over.
    """
    tokenizer = resolve_tokenizer(spec.tokenizer, spec.append_eos, spec.special_tokens_in_text)
    warn_if_longer_than_model(Path(tokenizer.path), spec.packing.seq_len)
    documents = DocumentSpec(tokenizer, "tokenizers", spec.min_doc_tokens, spec.max_doc_tokens, spec.packing.seq_len)
    files = find_files(sources)
    check_apart(files, output)
    try:
        _check_output(output)
        is_finished = (output / MANIFEST_DIGEST_NAME).is_file()  # and may be on a read-only file system
        with nullcontext() if is_finished else claimed_folder(output) as claim:
            return _prepare_locked(files, output, spec, documents, run, claim)
    except OSError as error:
        raise DataError(f"--output {output} cannot be written ({error}); make room and run again to go on") from error


def _check_output(output: Path) -> None:
    """Refuses a folder that holds anything but a run of this stage."""
    if output.exists() and not output.is_dir():
        raise DataError(f"--output {output} is a file; name a folder")
    if output.is_dir() and load_plan(output) is None:
        foreign = sorted(path.name for path in output.iterdir() if path.name not in (UNITS_FOLDER, OWNER_NAME))
        if foreign:
            raise DataError(f"--output {output} holds other files ({foreign[0]}); name a new or empty folder")


def _prepare_locked(
    files: list[SourceInputs],
    output: Path,
    spec: PrepareSpec,
    documents: DocumentSpec,
    run: OrderedMap,
    claim: FolderClaim | None,
) -> Manifest:
    started = time.time()
    run = run if claim is None else watched(run, claim)
    there = load_plan(output)
    finished = (output / MANIFEST_DIGEST_NAME).is_file()
    scratch = output / UNITS_FOLDER
    if not finished:
        scratch.mkdir(exist_ok=True)
        remove_temporary_files(output)
    inspected: dict[str, list[Inspection]] = {}
    inspections = Inspections(files, spec.packing.unit_bytes, run)
    if not finished and any(f.source.dataset is not None for f in files):
        inspected = inspections.collect()  # a wrong file is named before anything is fetched
        files = [fetch_dataset(f, scratch / "datasets", spec.packing.unit_bytes) for f in files]
        fetched = [f for f in files if f.source.dataset is not None]
        inspections = Inspections(fetched, spec.packing.unit_bytes, run)
    choice = BackendChoice("tokenizers", "asked for")
    if not finished:  # while other processes read the inputs
        texts = sample_texts(files)
        choice = choose_backend(documents.tokenizer, texts) if spec.tokenizer_backend == "auto" else choice
    documents = replace(documents, backend=choice.name)
    inspected = inspections.collect() | inspected
    planned = plan_manifest(files, inspected, documents, spec.packing, spec.dedup)
    if finished:
        planned = with_datasets_of(planned, there)
    if there is not None:
        check_same_parameters(output, there, planned)
    if finished:
        remove_scratch(output)  # of a run that was killed in its last instant
        print(escape_controls(f"{output} is already complete with these parameters; nothing to do"))
        return there
    tokenizer_path = Path(documents.tokenizer.path)  # where the user has it, not the copy for this run
    documents = replace(documents, tokenizer=documents.tokenizer.stored(scratch))
    units = make_units(files, inspected, documents, spec.packing, output)
    save_plan(output, planned)
    receipts, num_reused, num_duplicates = _run_units(units, output, spec, run)
    manifest = sum_up(planned, receipts, num_duplicates)
    if not manifest.shards:
        remove_scratch(output)  # or a run with the right settings would be refused here
        reasons = describe_counts(manifest.dropped["documents"])
        raise DataError(f"not one usable document in {len(manifest.inputs)} files (dropped: {reasons})")
    claim.check()
    remove_temporary_files(output)
    write_run_info(output, _run_info(started, choice, tokenizer_path, receipts, num_reused))
    complete_folder(output, manifest)
    return manifest


def _run_units(
    units: list[Unit], output: Path, spec: PrepareSpec, run: OrderedMap
) -> tuple[list[UnitReceipt], int, dict[str, int]]:
    """Receipts of all units in order, how many of them an earlier run had finished, and duplicates by source."""
    scratch = output / UNITS_FOLDER
    if spec.dedup == "exact":
        _with_progress(hash_unit, units, run, "hashing documents")
        duplicates = mark_duplicates(scratch, len(units))
        units = [replace(unit, duplicates=d) for unit, d in zip(units, duplicates, strict=True)]
    receipts, num_reused = _finish(process_unit, units, output, run, "packing")
    leftovers = _leftover_units(receipts, spec.packing, output)
    leftover_receipts, num_leftovers_reused = _finish(process_leftovers, leftovers, output, run, "packing leftovers")
    if spec.dedup == "count":
        duplicates = mark_duplicates(scratch, len(units))
    num_duplicates: Counter[str] = Counter()
    for unit, of_unit in zip(units, duplicates, strict=True):
        num_duplicates[unit.source.name] += int(of_unit.load().sum())
    return receipts + leftover_receipts, num_reused + num_leftovers_reused, num_duplicates


def _leftover_units(receipts: list[UnitReceipt], packing: PackingSpec, output: Path) -> list[LeftoverUnit]:
    """Groups of units whose leftovers are packed together, numbered after all other units."""
    units: list[LeftoverUnit] = []
    with_leftovers = [receipt for receipt in receipts if receipt.leftovers is not None]
    for source, members in groupby(with_leftovers, key=lambda receipt: receipt.source):
        numbers = [receipt.unit for receipt in members]
        for start in range(0, len(numbers), LEFTOVER_GROUP):
            parts = tuple(numbers[start : start + LEFTOVER_GROUP])
            size = sum(leftovers_path(output, part).stat().st_size for part in parts)
            units.append(LeftoverUnit(len(receipts) + len(units), source, parts, packing, output, size))
    return units


def _finish(
    process: Callable[[AnyUnit], UnitReceipt], units: list[AnyUnit], output: Path, run: OrderedMap, what: str
) -> tuple[list[UnitReceipt], int]:
    """Receipts of all units in order, and how many were there already."""
    begun = [unit.number for unit in units if receipt_path(output, unit.number).is_file()]
    checked = run(partial(load_receipt, output), begun)
    receipts = {number: receipt for number, receipt in zip(begun, checked, strict=True) if receipt is not None}
    missing = [unit for unit in units if unit.number not in receipts]
    num_reused = len(receipts)
    for unit, receipt in zip(missing, _with_progress(process, missing, run, what), strict=True):
        receipts[unit.number] = receipt
    return [receipts[unit.number] for unit in units], num_reused


def _with_progress(process: Callable[[AnyUnit], Any], units: list[AnyUnit], run: OrderedMap, what: str) -> list[Any]:
    results = []
    with tqdm(total=sum(unit.size for unit in units), desc=what, unit="B", unit_scale=True) as progress:
        for unit, result in zip(units, run(process, units), strict=True):
            results.append(result)
            progress.update(unit.size)
    return results


def _run_info(
    started: float, choice: BackendChoice, tokenizer_json: Path, receipts: list[UnitReceipt], num_reused: int
) -> dict[str, Any]:
    return {
        **describe_start(RECORDED_VERSIONS),
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(started)),
        "seconds": round(time.time() - started, 2),
        "tokenizer": str(tokenizer_json.parent.absolute()),
        "tokenizer_backend": {
            "name": choice.name,
            "reason": choice.reason,
            "texts_left_to_tokenizers": sum(receipt.num_fallbacks for receipt in receipts),
        },
        "units_reused": num_reused,
    }
