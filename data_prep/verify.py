"""Checks a packed folder: `python -m data_prep.verify DIR` reads every byte and recounts what it holds.

With `--sample N` it reads the file list, the manifest, every index and N samples spread over the folder: seconds,
however large the folder is. Exits 0 and prints the totals when all is well, 1 with one line that names the first
fault otherwise.
"""

import argparse
import hashlib
import os
import secrets
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from data_prep.piece_ledger import PieceLedger
from data_prep.shard_checks import (
    DOCUMENT_TOTALS,
    SAMPLE_TOTALS,
    PlacedShard,
    check_file_list,
    check_manifest,
    load_checked_index,
    place_shards,
    read_checked_sample,
)
from data_prep.shard_reader import open_tar
from pipeline.data.shard_format import MANIFEST_NAME, DataError, Manifest, PackedSample
from pipeline.data.shard_io import END_OF_TAR
from pipeline.errors import escape_controls
from pipeline.exit_codes import run_tool
from pipeline.flags import ToolParser

SourceCounts = dict[str, Counter[str]]


@dataclass(frozen=True)
class Coverage:
    """What a sampled check has read."""

    manifest: Manifest
    num_samples: int
    num_bytes: int


def verify_folder(folder: Path) -> Manifest:
    """Reads the whole folder.

    Raises:
        DataError: the first fault found.
    """
    manifest = _check_frame(folder)
    counts: SourceCounts = {source["name"]: Counter() for source in manifest.sources}
    ledger = PieceLedger()
    num_bytes = sum(entry.size for entry in manifest.shards)
    with tqdm(total=num_bytes, desc="verifying", unit="B", unit_scale=True, disable=None) as progress:
        for shard in place_shards(folder, manifest):
            for where, sample in _checked_samples(folder, shard, manifest.seq_len, progress):
                _count(sample, counts[shard.entry.source])
                for piece in sample.meta["documents"]:
                    ledger.add(shard.entry.source, piece, where)
            ledger.end_shard(shard.entry.name)
    _compare_totals(folder, manifest, counts, (*SAMPLE_TOTALS, *DOCUMENT_TOTALS))
    ledger.finish({source["name"]: sum(source["dropped"].get("tokens", {}).values()) for source in manifest.sources})
    return manifest


def sample_folder(folder: Path, num_samples: int, seed: int) -> Coverage:
    """Reads the folder's frame and `num_samples` samples (or all, if there are fewer), one of each equal stretch.

    Raises:
        DataError: the first fault found.
    """
    manifest = _check_frame(folder)
    counts: SourceCounts = {source["name"]: Counter() for source in manifest.sources}
    chosen = _spread(sum(entry.num_samples for entry in manifest.shards), num_samples, seed)
    first = num_bytes = 0
    with tqdm(total=len(chosen), desc="verifying", unit="sample", disable=None) as progress:
        for shard in place_shards(folder, manifest):
            index = load_checked_index(folder, shard.entry)
            counts[shard.entry.source].update(samples=len(index), tokens=shard.entry.num_tokens)
            numbers = chosen[(chosen >= first) & (chosen < first + len(index))] - first
            first += len(index)
            with open_tar(folder / shard.entry.tar_name) as tar:
                for number in numbers:
                    read_checked_sample(tar, folder, shard, int(number), index[number], manifest.seq_len)
                    num_bytes += int(index[number]["length"])
                    progress.update()
    _compare_totals(folder, manifest, counts, SAMPLE_TOTALS)
    return Coverage(manifest, len(chosen), num_bytes)


def _check_frame(folder: Path) -> Manifest:
    manifest = Manifest.load(folder)
    check_manifest(folder, manifest)
    check_file_list(folder, manifest)
    return manifest


def _spread(total: int, num_samples: int, seed: int) -> np.ndarray:
    """Ascending sample numbers, int64 [min(num_samples, total)], one at random from each equal stretch."""
    num_samples = min(num_samples, total)
    bounds = np.arange(num_samples + 1) * total // max(num_samples, 1)
    return np.random.default_rng(seed).integers(bounds[:-1], bounds[1:])


def _checked_samples(
    folder: Path, shard: PlacedShard, seq_len: int, progress: tqdm
) -> Iterator[tuple[str, PackedSample]]:
    """Every sample of one shard with its place, checked; then the tar as a whole."""
    entry = shard.entry
    index, path, digest = load_checked_index(folder, entry), folder / entry.tar_name, hashlib.sha256()
    with open_tar(path) as tar:
        for number, row in enumerate(index):
            raw, sample = read_checked_sample(tar, folder, shard, number, row, seq_len)
            digest.update(raw)
            progress.update(len(raw))
            yield f"{path}: sample {number}", sample
        rest = os.pread(tar, 2 * len(END_OF_TAR), entry.size - len(END_OF_TAR))
    if rest != END_OF_TAR:
        raise DataError(f"{path} does not end after the last sample of {entry.index_name}")
    digest.update(rest)
    progress.update(len(rest))
    if digest.hexdigest() != entry.sha256:
        raise DataError(f"{path} does not match its sha256 in {MANIFEST_NAME}")


def _count(sample: PackedSample, counts: Counter[str]) -> None:
    begun = [piece for piece in sample.meta["documents"] if piece["start"] == 0]
    counts.update(
        samples=1,
        tokens=len(sample.input_ids),
        documents=len(begun),
        text_bytes=sum(piece["origin"].get("bytes", 0) for piece in begun),
        cut_documents=sum(piece["end"] < piece["tokens"] for piece in begun),
    )


def _compare_totals(folder: Path, manifest: Manifest, counts: SourceCounts, names: tuple[str, ...]) -> None:
    for source in manifest.sources:
        for name in names:
            listed, found = source["totals"].get(name), counts[source["name"]][name]
            if listed != found:
                raise DataError(
                    f"{folder / MANIFEST_NAME} totals {listed} {name} of source {source['name']}, "
                    f"its shards hold {found}"
                )


def _parse(argv: list[str] | None) -> argparse.Namespace:
    summary, *rest = (__doc__ or "").split("\n\n")
    parser = ToolParser("data_prep.verify", summary, "\n\n".join(rest))
    parser.add_argument("folder", type=Path, metavar="DIR", help="packed data folder")
    parser.add_argument("--sample", type=int, metavar="N", help="read only N samples, spread over the folder")
    parser.add_argument("--seed", type=int, metavar="S", help="which samples (default: others each time)")
    arguments = parser.parse_args(argv)
    if arguments.sample is not None and arguments.sample < 1:
        parser.error(f"--sample: must be >= 1, found {arguments.sample}")
    if arguments.seed is not None and (arguments.sample is None or arguments.seed < 0):
        parser.error(f"--seed: goes with --sample and must be >= 0, found {arguments.seed}")
    return arguments


def _verify(arguments: argparse.Namespace) -> None:
    folder = arguments.folder
    if arguments.sample is None:
        manifest, share = verify_folder(folder), ""
    else:
        seed = secrets.randbits(31) if arguments.seed is None else arguments.seed
        coverage = sample_folder(folder, arguments.sample, seed)
        manifest = coverage.manifest
        total, num_bytes = manifest.totals["samples"], sum(entry.size for entry in manifest.shards)
        share = (
            f"; all sizes and indexes, but the content of {coverage.num_samples:,} of {total:,} samples only "
            f"({coverage.num_bytes / max(num_bytes, 1):.1%} of the bytes, --seed {seed})"
        )
    totals = ", ".join(f"{manifest.totals[name]:,} {name}" for name in ("samples", "tokens", "documents"))
    found = f"{totals} in {len(manifest.shards)} shards; fingerprint {manifest.sha256[:12]}{share}"
    print(escape_controls(f"{folder}: all well: {found}"))


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    arguments = _parse(argv)
    return run_tool(lambda: _verify(arguments))


if __name__ == "__main__":
    sys.exit(main())
