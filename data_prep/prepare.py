"""Documents in, a finished packed folder out.

The input is cut into work units that depend only on the input and the configuration; each unit is read,
tokenised, packed and written on its own, so the folder's bytes are the same for any number of workers, and a
run that was killed goes on with the units that are missing.
"""

import platform
import socket
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tqdm import tqdm

from data_prep.inputs import InputFile, ReadingSpec, find_inputs
from data_prep.manifest import (
    UNITS_FOLDER,
    UnitReceipt,
    check_same_parameters,
    complete_folder,
    json_bytes,
    load_plan,
    load_receipt,
    save_plan,
    sum_up,
)
from data_prep.packing import TokenisedDocument, pack_concat
from data_prep.readers import fingerprint_input, read_documents
from data_prep.shard_writer import TEMPORARY_SUFFIX, ShardWriter, write_file
from data_prep.tokenization import DocumentTokenizer, TokenizerSpec, resolve_tokenizer
from data_prep.workers import OrderedMap, locked, worker_map
from pipeline.data.shard_format import MANIFEST_DIGEST_NAME, RUN_INFO_NAME, DataError, Manifest

RECORDED_VERSIONS = ("tokenizers", "numpy", "pyarrow", "fsspec", "zstandard")


@dataclass(frozen=True)
class PackingSpec:
    """How documents become samples and samples become files; sizes in bytes."""

    seq_len: int
    method: str
    append_eos: bool
    unit_bytes: int
    shard_bytes: int


@dataclass(frozen=True)
class _Unit:
    """One work unit, with everything that a worker process needs for it."""

    number: int
    files: tuple[InputFile, ...]
    tokenizer: TokenizerSpec
    reading: ReadingSpec
    packing: PackingSpec
    folder: Path

    @property
    def size(self) -> int:
        return sum(file.size for file in self.files)


def prepare(
    inputs: Iterable[str],
    tokenizer: str,
    output: Path,
    reading: ReadingSpec,
    packing: PackingSpec,
    num_workers: int,
) -> Manifest:
    """Makes (or goes on making) the packed folder `output`; a finished one of the same parameters is left
    alone.

    Raises:
        DataError: what is wrong with the inputs, the tokenizer or the folder, in one line.
    """
    started = time.time()
    spec = resolve_tokenizer(tokenizer, packing.append_eos)
    files, skipped = find_inputs(inputs, reading)
    _check_output(output)
    with worker_map(num_workers) as run:
        planned = _plan(files, skipped, spec, reading, packing, run)
        output.mkdir(parents=True, exist_ok=True)
        with locked(output):
            found = load_plan(output)
            if found is not None:
                check_same_parameters(output, found, planned)
                if (output / MANIFEST_DIGEST_NAME).is_file():
                    print(f"{output} is already complete with these parameters; nothing to do")
                    return found
            save_plan(output, planned)
            for leftover in output.glob(f"*{TEMPORARY_SUFFIX}"):
                leftover.unlink()
            units = [
                _Unit(number, group, spec, reading, packing, output)
                for number, group in enumerate(_group(files, packing.unit_bytes))
            ]
            receipts, num_reused = _run_units(units, run)
            manifest = sum_up(planned, receipts)
            if not manifest.shards:
                reasons = manifest.dropped["documents"]
                raise DataError(f"--inputs: not one usable document in {len(files)} files (dropped: {reasons})")
            write_file(output / RUN_INFO_NAME, json_bytes(_run_info(started, num_workers, num_reused)))
            complete_folder(output, manifest)
    return manifest


def _check_output(output: Path) -> None:
    """Refuses a folder that holds anything but a run of this stage."""
    if output.exists() and not output.is_dir():
        raise DataError(f"--output {output} is a file; name a folder")
    if output.is_dir() and load_plan(output) is None:
        foreign = sorted(path.name for path in output.iterdir() if path.name != UNITS_FOLDER)
        if foreign:
            raise DataError(f"--output {output} holds other files ({foreign[0]}); name a new or empty folder")


def _plan(
    files: list[InputFile],
    skipped: dict[str, int],
    tokenizer: TokenizerSpec,
    reading: ReadingSpec,
    packing: PackingSpec,
    run: OrderedMap,
) -> Manifest:
    """The manifest as far as it is known before the work: parameters, and inputs with size and sha256."""
    hashes = tqdm(
        run(partial(fingerprint_input, text_field=reading.text_field), files),
        total=len(files),
        desc="checking inputs",
        unit="file",
    )
    return Manifest(
        tokenizer_name=tokenizer.name,
        tokenizer_sha256=tokenizer.sha256,
        seq_len=packing.seq_len,
        packing={
            "method": packing.method,
            "append_eos": packing.append_eos,
            "eos_token_id": tokenizer.eos_token_id,
            "unit_bytes": packing.unit_bytes,
            "shard_bytes": packing.shard_bytes,
        },
        reading={
            "text_field": reading.text_field,
            "extensions": list(reading.extensions),
            "exclude": list(reading.exclude),
            "min_bytes": reading.min_bytes,
        },
        shards=[],
        inputs=[
            {"name": file.name, "format": file.format, "size": file.size, "sha256": sha256}
            for file, sha256 in zip(files, hashes, strict=True)
        ],
        dropped={"files": skipped},
    )


def _group(files: list[InputFile], unit_bytes: int) -> Iterator[tuple[InputFile, ...]]:
    """Cuts the sorted files into work units of at most `unit_bytes`; a larger file is a unit of its own."""
    group: list[InputFile] = []
    size = 0
    for file in files:
        if group and size + file.size > unit_bytes:
            yield tuple(group)
            group, size = [], 0
        group.append(file)
        size += file.size
    yield tuple(group)


def _run_units(units: list[_Unit], run: OrderedMap) -> tuple[list[UnitReceipt], int]:
    """Receipts of all units in order, and how many of them an earlier run had finished."""
    receipts = {unit.number: load_receipt(unit.folder, unit.number) for unit in units}
    missing = [unit for unit in units if receipts[unit.number] is None]
    done = sum(unit.size for unit in units) - sum(unit.size for unit in missing)
    total = sum(unit.size for unit in units)
    with tqdm(total=total, initial=done, desc="packing", unit="B", unit_scale=True) as progress:
        for unit, receipt in zip(missing, run(_process_unit, missing), strict=True):
            receipts[unit.number] = receipt
            progress.update(unit.size)
    return list(receipts.values()), len(units) - len(missing)


def _process_unit(unit: _Unit) -> UnitReceipt:
    """Reads, tokenises, packs and writes one unit; its receipt is saved when its shards are on disk."""
    dropped: dict[str, Counter[str]] = {file.name: Counter() for file in unit.files}
    packed: Counter[str] = Counter()
    with ShardWriter(unit.folder, unit.number, unit.packing.shard_bytes) as writer:
        for pack in pack_concat(_tokenised(unit, dropped, packed), unit.packing.seq_len):
            writer.write(pack)
    reasons = {name: dict(counts) for name, counts in dropped.items() if counts}
    receipt = UnitReceipt(unit.number, writer.entries, reasons, packed["documents"], packed["text_bytes"])
    receipt.save(unit.folder)
    return receipt


def _tokenised(unit: _Unit, dropped: dict[str, Counter[str]], packed: Counter[str]) -> Iterator[TokenisedDocument]:
    tokenizer = _tokenizer(unit.tokenizer)
    for file in unit.files:
        raw = read_documents(file, unit.reading.text_field, dropped[file.name])
        for document in tokenizer.tokenise(raw):
            if len(document.input_ids) == 0:
                dropped[file.name]["no_tokens"] += 1
                continue
            packed.update(documents=1, text_bytes=document.origin["bytes"])
            yield document


@lru_cache(maxsize=1)
def _tokenizer(spec: TokenizerSpec) -> DocumentTokenizer:
    """Loaded once a process: a large vocabulary takes longer to load than a small unit to encode."""
    return DocumentTokenizer(spec)


def _run_info(started: float, num_workers: int, num_reused: int) -> dict[str, Any]:
    return {
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(started)),
        "seconds": round(time.time() - started, 2),
        "host": socket.gethostname(),
        "command": sys.argv,
        "num_workers": num_workers,
        "units_reused": num_reused,
        "versions": {"python": platform.python_version()} | {name: version(name) for name in RECORDED_VERSIONS},
    }
