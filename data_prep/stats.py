"""What a packed folder holds, source by source: `python -m data_prep.stats DIR`.

Prints a table and writes stats.json and stats.png to --output: documents and their lengths, how many are longer than a
window, bytes per token, how full the samples are, what was cut or dropped, how much of it is supervised. Reads the
manifest, the indexes and of each sample its meta.json and loss_mask; it checks no digest (data_prep.verify does).
"""

import json
import os
import sys
import tarfile
from pathlib import Path

import numpy as np
from tqdm import tqdm

from data_prep.length_tally import Lengths, Tally
from data_prep.shard_checks import check_manifest, load_checked_index, place_shards
from data_prep.shard_reader import open_tar
from data_prep.stats_table import format_stats
from pipeline.data.shard_format import MEMBER_DTYPES, DataError, Manifest
from pipeline.data.shard_io import write_file
from pipeline.data.tar_members import npy_view
from pipeline.errors import escape_controls
from pipeline.exit_codes import run_tool
from pipeline.flags import ToolParser

STATS_NAME = "stats.json"
PLOT_NAME = "stats.png"
WANTED_MEMBERS = ("loss_mask.npy", "meta.json")


def collect_stats(folder: Path) -> dict:
    """Scans the folder; memory does not grow with it.

    Returns:
        What stats.json holds: "fingerprint", "seq_len", "packing", "sources" (one entry each) and "total", which are
        made by `_summarise`. A function of the folder's content alone.

    Raises:
        DataError: the folder is unfinished or altered, or a sample cannot be read.
    """
    manifest = Manifest.load(folder)
    check_manifest(folder, manifest)
    tallies = {source["name"]: Tally() for source in manifest.sources}
    num_samples = sum(entry.num_samples for entry in manifest.shards)
    with tqdm(total=num_samples, desc="reading", unit="sample", unit_scale=True, disable=None) as progress:
        for shard in place_shards(folder, manifest):
            index, path = load_checked_index(folder, shard.entry), folder / shard.entry.tar_name
            tally = tallies[shard.entry.source]
            with open_tar(path) as tar:
                for number, row in enumerate(index):
                    pieces, supervised = _read_facts(tar, row, f"{path}: sample {number}")
                    tally.add_sample(int(row["tokens"]), manifest.seq_len, pieces, supervised)
                    progress.update()
    total = Tally()
    for tally in tallies.values():
        total.merge(tally)
    all_tokens = manifest.totals["tokens"]
    sources = [_summarise(s, tallies[s["name"]], manifest.seq_len, all_tokens) for s in manifest.sources]
    whole = {"totals": manifest.totals, "dropped": manifest.dropped, "labels": any(s["labels"] for s in sources)}
    return {
        "fingerprint": manifest.sha256,
        "seq_len": manifest.seq_len,
        "packing": manifest.packing,
        "sources": sources,
        "total": _summarise({"name": "all", "weight": None, **whole}, total, manifest.seq_len, all_tokens),
    }


def _read_facts(tar: int, row: np.void, where: str) -> tuple[list[dict], int]:
    """The documents of one sample's meta.json and the number of its supervised tokens (0 without a loss_mask)."""
    try:
        members = _read_members(tar, int(row["offset"]), int(row["length"]))
        pieces = json.loads(members["meta.json"])["documents"]
        for piece in pieces:
            bounds = [piece[name] for name in ("start", "end", "tokens")]
            if any(type(bound) is not int for bound in bounds) or not 0 <= bounds[0] < bounds[1] <= bounds[2] < 1 << 63:
                raise ValueError(f"meta.json lists {piece}")
        mask = members.get("loss_mask.npy")
        supervised = (
            0
            if mask is None
            else npy_view(mask, 0, len(mask), "loss_mask.npy", (MEMBER_DTYPES["loss_mask.npy"],)).sum()
        )
    except (tarfile.TarError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(f"{where} cannot be read ({error}); data_prep.verify finds what is damaged") from error
    return pieces, int(supervised)


def _read_members(tar: int, offset: int, length: int) -> dict[str, bytes]:
    """Content of WANTED_MEMBERS; the others, nearly all of the bytes, are passed over."""
    members, position, end = {}, offset, offset + length
    while position < end:
        header = tarfile.TarInfo.frombuf(os.pread(tar, tarfile.BLOCKSIZE, position), "utf-8", "strict")
        start = position + tarfile.BLOCKSIZE
        if not 0 <= header.size <= end - start:
            raise ValueError(f"{header.name} is longer than the sample")
        part = header.name.partition(".")[2]
        if part in WANTED_MEMBERS:
            members[part] = os.pread(tar, header.size, start)
        position = start + header.size + -header.size % tarfile.BLOCKSIZE
    return members


def _summarise(source: dict, tally: Tally, seq_len: int, all_tokens: int) -> dict:
    totals = source["totals"]
    samples, tokens, documents = (totals[name] for name in ("samples", "tokens", "documents"))
    return {
        **totals,
        "name": source["name"],
        "weight": source["weight"],
        "labels": source["labels"],
        "dropped": source["dropped"],
        "share_of_tokens": _ratio(tokens, all_tokens),
        "bytes_per_token": _ratio(totals["text_bytes"], tokens),
        "packing_efficiency": _ratio(tokens, samples * seq_len),
        "cut_share": _ratio(totals["cut_documents"], documents),
        "supervised_tokens": tally.supervised_tokens if source["labels"] else None,
        "supervised_share": _ratio(tally.supervised_tokens, tokens) if source["labels"] else None,
        "document_lengths": _summarise_lengths(tally.documents),
        "piece_lengths": _summarise_lengths(tally.pieces),
        "sample_fill": tally.fill_histogram(),
    }


def _summarise_lengths(lengths: Lengths) -> dict:
    return {
        "number": lengths.total,
        "tokens": lengths.tokens,
        "mean": _ratio(lengths.tokens, lengths.total),
        "quantiles": lengths.quantiles(),
        "histogram": lengths.histogram(),
        "longer_than": lengths.longer_than(),
    }


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


def _resolve_output(folder: Path, output: Path | None) -> Path:
    """The folder to write to; never inside the data folder, where data_prep.verify would find files not listed."""
    resolved = folder.resolve()
    if output is None:
        return resolved.with_name(f"{resolved.name}-stats")
    if output.resolve().is_relative_to(resolved):
        raise DataError(f"--output {output} lies in the data folder {folder}; name a folder outside it")
    return output


def _write_stats(folder: Path, output: Path | None) -> None:
    from data_prep.stats_plot import plot_stats  # matplotlib takes a second to load: not for --help

    target = _resolve_output(folder, output)
    stats = collect_stats(folder)
    target.mkdir(parents=True, exist_ok=True)
    write_file(target / STATS_NAME, (json.dumps(stats, indent=1) + "\n").encode())
    write_file(target / PLOT_NAME, plot_stats(stats, escape_controls(folder.resolve().name)))
    print(format_stats(stats))
    print("\n" + escape_controls(f"{STATS_NAME} and {PLOT_NAME} in {target}"))


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    summary, rest = (__doc__ or "").split("\n\n")
    parser = ToolParser("data_prep.stats", summary, rest)
    parser.add_argument("folder", type=Path, metavar="DIR", help="packed data folder")
    parser.add_argument("--output", type=Path, metavar="DIR2", help="folder for the results (default: DIR-stats)")
    arguments = parser.parse_args(argv)
    return run_tool(lambda: _write_stats(arguments.folder, arguments.output))


if __name__ == "__main__":
    sys.exit(main())
