"""Checks every byte and every count of a packed folder: `python -m data_prep.verify DIR`.

Exits 0 and prints the totals when all is well, 1 with one line that names the first fault otherwise. run.json
is the one file that it does not check: what it says may differ between equal runs.
"""

import argparse
import os
import sys
from collections import Counter
from pathlib import Path

import numpy as np
from tqdm import tqdm

from data_prep.manifest import file_matches
from data_prep.shard_writer import END_OF_TAR, sample_key
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
    sample_digest,
)


def verify_folder(folder: Path) -> Manifest:
    """Reads the whole folder.

    Raises:
        DataError: the first fault found.
    """
    manifest = Manifest.load(folder)
    _check_file_list(folder, manifest)
    counts: Counter[str] = Counter()
    next_number: Counter[int] = Counter()  # of a unit's samples
    last_name = ""
    for entry in tqdm(manifest.shards, desc="verifying", unit="shard", disable=None):
        if entry.name <= last_name:
            raise DataError(f"{folder / MANIFEST_NAME} lists {entry.name} after {last_name}: not in order")
        last_name = entry.name
        unit = int(entry.name.split("-")[1])
        samples = _check_shard(folder, entry, manifest.seq_len, unit, next_number[unit], counts)
        next_number[unit] += samples
    for name in ("samples", "tokens", "documents"):
        if counts[name] != manifest.totals.get(name):
            listed = manifest.totals.get(name)
            raise DataError(f"{folder / MANIFEST_NAME} totals {listed} {name}, the shards hold {counts[name]}")
    return manifest


def _check_file_list(folder: Path, manifest: Manifest) -> None:
    listed = {MANIFEST_NAME, MANIFEST_DIGEST_NAME, RUN_INFO_NAME}
    listed |= {name for entry in manifest.shards for name in (entry.tar_name, entry.index_name)}
    present = {path.name for path in folder.iterdir()}
    for name in sorted(listed - present):
        raise DataError(f"{folder / name} is missing")
    for name in sorted(present - listed):
        raise DataError(f"{folder / name} is not listed in {MANIFEST_NAME}")


def _check_shard(
    folder: Path, entry: ShardEntry, seq_len: int, unit: int, first_number: int, counts: Counter[str]
) -> int:
    """Checks one tar and its index sample by sample, adds to `counts`, and returns its number of samples."""
    index = load_index(folder, entry)
    path = folder / entry.tar_name
    if not file_matches(path, entry.size, entry.sha256):
        raise DataError(f"{path} does not match its sha256 in {MANIFEST_NAME}")
    end = 0
    with open(path, "rb") as tar:
        for number, row in enumerate(index):
            where = f"{path}: sample {number}"
            if row["offset"] != end or row["length"] <= 0:
                raise DataError(f"{folder / entry.index_name}: sample {number} is at byte {end} of the tar, not there")
            raw = os.pread(tar.fileno(), int(row["length"]), end)
            end += len(raw)
            if not np.array_equal(sample_digest(raw), row["digest"]):
                raise DataError(f"{where} does not match its digest in {entry.index_name}")
            sample = decode_sample(raw, where)
            expected = sample_key(unit, first_number + number)
            if sample.key != expected:
                raise DataError(f"{where} has key {sample.key}, expected {expected}")
            _check_sample(sample, int(row["tokens"]), seq_len, where)
            counts.update(samples=1, tokens=len(sample.input_ids))
            counts.update(documents=sum(piece["start"] == 0 for piece in sample.meta["documents"]))
        if os.pread(tar.fileno(), entry.size, end) != END_OF_TAR:
            raise DataError(f"{path} does not end after the last sample of {entry.index_name}")
    return len(index)


def _check_sample(sample: PackedSample, num_tokens: int, seq_len: int, where: str) -> None:
    if len(sample.input_ids) != num_tokens:
        raise DataError(f"{where} has {len(sample.input_ids)} tokens, its index says {num_tokens}")
    if num_tokens > seq_len:
        raise DataError(f"{where} has {num_tokens} tokens, more than seq_len {seq_len}")
    for piece, length in zip(sample.meta["documents"], np.diff(sample.cu_seqlens), strict=True):
        inside = 0 <= piece["start"] < piece["end"] <= piece["tokens"]
        if not inside or piece["end"] - piece["start"] != length:
            raise DataError(
                f"{where}: meta.json says tokens {piece['start']} to {piece['end']} of {piece['tokens']} "
                f"of {piece['id']}, cu_seqlens says {length} tokens"
            )


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    summary = (__doc__ or "").split("\n")[0]
    parser = argparse.ArgumentParser(prog="python -m data_prep.verify", description=summary)
    parser.add_argument("folder", type=Path, help="packed data folder")
    folder = parser.parse_args(argv).folder
    try:
        manifest = verify_folder(folder)
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    totals = ", ".join(f"{manifest.totals[name]:,} {name}" for name in ("samples", "tokens", "documents"))
    print(f"{folder}: all well: {totals} in {len(manifest.shards)} shards; fingerprint {manifest.sha256[:12]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
