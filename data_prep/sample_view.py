"""Shows samples of a packed folder as text: `python -m data_prep.inspect DIR 0 17 --tokenizer MODEL`.

For each sample: key, shard, tokens, and of each document its bounds, id, origin, which piece of it this is, and the
beginning and end of its text. What the loss is taken on (the loss_mask of conversations) is coloured on a terminal and
in brackets ⟦ ⟧ elsewhere.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np

from data_prep.data_tokenizer import find_decoder, load_decoder
from data_prep.sample_text import BRACKETS, COLOURS, Decode, Marks, print_ids, render_document
from data_prep.shard_reader import locate_sample, open_tar, read_sample_bytes
from pipeline.data.shard_format import (
    DataError,
    Manifest,
    PackedSample,
    ShardEntry,
    decode_sample,
    load_index,
)
from pipeline.errors import escape_controls
from pipeline.exit_codes import run_tool
from pipeline.flags import ToolParser


def show_sample(folder: Path, manifest: Manifest, number: int, decode: Decode, width: int, marks: Marks) -> str:
    """The folder's sample `number` (0-based) for reading; `width` tokens of either end of each document.

    Raises:
        DataError: there is no such sample, or it is damaged.
    """
    entry, number_in_shard = locate_sample(manifest, number)
    where = f"{folder / entry.tar_name}: sample {number_in_shard}"
    with open_tar(folder / entry.tar_name) as tar:
        raw = read_sample_bytes(tar, load_index(folder, entry)[number_in_shard], where)
    sample = decode_sample(raw, where)
    head = _describe_sample(sample, entry, number, number_in_shard, manifest)
    return "\n".join([head, *_documents(sample, decode, width, marks)])


def _describe_sample(
    sample: PackedSample, entry: ShardEntry, number: int, number_in_shard: int, manifest: Manifest
) -> str:
    tokens, pieces = len(sample.input_ids), len(sample.meta["documents"])
    total = sum(shard.num_samples for shard in manifest.shards)
    return (
        f"sample {number} of {total:,}: key {sample.key}, number {number_in_shard} of {entry.tar_name}, "
        f"source {entry.source}\n"
        f"  {tokens:,} tokens ({tokens / manifest.seq_len:.1%} of {manifest.seq_len:,}) in {pieces} "
        f"document{'s' if pieces != 1 else ''}{_supervised(sample.loss_mask)}"
    )


def _supervised(mask: np.ndarray | None) -> str:
    return "" if mask is None else f", {int(mask.sum()):,} supervised ({mask.mean():.1%})"


def _documents(sample: PackedSample, decode: Decode, width: int, marks: Marks) -> list[str]:
    shown = []
    bounds = sample.cu_seqlens.tolist()
    for number, (piece, begin, end) in enumerate(zip(sample.meta["documents"], bounds[:-1], bounds[1:], strict=True)):
        mask = None if sample.loss_mask is None else sample.loss_mask[begin:end]
        name, origin = escape_controls(str(piece["id"])), escape_controls(json.dumps(piece["origin"], sort_keys=True))
        shown.append(
            f"  document {number}: tokens {begin:,}-{end:,}, {_piece(piece)}{_supervised(mask)}\n"
            f"    id {name}, origin {origin}"
        )
        shown.append(render_document(sample.input_ids[begin:end], mask, decode, width, marks))
    return shown


def _piece(piece: dict) -> str:
    if (piece["start"], piece["end"]) == (0, piece["tokens"]):
        return "whole"
    return f"the piece {piece['start']:,}-{piece['end']:,} of a document of {piece['tokens']:,}"


def _parse(argv: list[str] | None) -> argparse.Namespace:
    summary, rest = (__doc__ or "").split("\n\n")
    parser = ToolParser("data_prep.inspect", summary, rest)
    parser.add_argument("folder", type=Path, metavar="DIR", help="packed data folder")
    parser.add_argument("samples", type=int, nargs="*", metavar="SAMPLE", help="numbers from 0 (default: 0)")
    parser.add_argument(
        "--tokenizer", metavar="PATH", help="folder with the data's tokenizer.json, or a hub id (default: the one that "
        "made the data, if it is still on this machine; without any, token ids are shown)",
    )  # fmt: skip
    parser.add_argument(
        "--width", type=int, default=60, metavar="N", help="tokens to show of either end of a document (default: 60)"
    )
    arguments = parser.parse_args(argv)
    if arguments.width < 1:
        parser.error(f"--width: must be >= 1, found {arguments.width}")
    return arguments


def _show(arguments: argparse.Namespace) -> None:
    folder, numbers = arguments.folder, arguments.samples or [0]
    manifest = Manifest.load(folder)
    for number in numbers:  # a wrong number is named before anything is shown
        locate_sample(manifest, number)
    decode = print_ids
    if arguments.tokenizer is not None:
        decode = load_decoder(manifest, arguments.tokenizer)
    else:
        try:
            decode = find_decoder(folder, manifest)
        except DataError as error:
            name = escape_controls(manifest.tokenizer_name)
            print(f"no tokenizer: token ids are shown; pass --tokenizer with the folder or hub id of {name} ({error})")
    marks = COLOURS if sys.stdout.isatty() else BRACKETS
    for number in numbers:
        print(show_sample(folder, manifest, number, decode, arguments.width, marks))


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    sys.stdout.reconfigure(errors="backslashreplace")  # a terminal without Unicode shows escapes
    arguments = _parse(argv)
    return run_tool(lambda: _show(arguments))


if __name__ == "__main__":
    sys.exit(main())
