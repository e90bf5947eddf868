"""Shows samples of a teacher cache: `python -m pipeline.teacher.inspect CACHE 0 17 --data DIR --tokenizer MODEL`.

First the teacher and what it computed in. For each sample: key, shard, which positions have a signal, and for some of
them the teacher's likeliest next tokens (of draws: with its entropy), or the size of its hidden state. With --data also
the token at the position and the one that follows it there; with --tokenizer as text. Without --data, samples are
counted over the shards that are there.
"""

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.data.dataset import PackedDataset
from pipeline.data.shard_format import DataError
from pipeline.errors import escape_controls
from pipeline.exit_codes import run_tool
from pipeline.flags import ToolParser
from pipeline.teacher.cache_checks import (
    CachedShard,
    OpenedCache,
    load_checked_index,
    open_cache,
    read_checked_sample,
)
from pipeline.teacher.cache_format import TeacherInfo
from pipeline.teacher.cache_samples import decode_cached_sample, read_bytes
from pipeline.teacher.signals import (
    HiddenSignal,
    SampledSignal,
    Signal,
    SignalSpec,
    TopKSignal,
    signal_from_members,
    spec_to_json,
)
from pipeline.tokenizer import fingerprint, load_tokenizer

ShowToken = Callable[[int], str]
MAX_RANGES = 8
TOKENIZER_FILE = "tokenizer.json"


@dataclass(frozen=True)
class View:
    """What is shown of each sample: `num_positions` of its positions, `num_guesses` tokens at each."""

    show_token: ShowToken
    num_positions: int
    num_guesses: int


def load_token_texts(info_sha256: str, tokenizer: Path) -> ShowToken:
    """Token ids as quoted text, with everything escaped that a terminal would act on.

    Args:
        info_sha256: fingerprint of the tokenizer that the cache's data was made with.
        tokenizer: folder with tokenizer.json, or that file.

    Raises:
        DataError: no tokenizer there, or another one.
    """
    path = tokenizer if tokenizer.name == TOKENIZER_FILE and tokenizer.is_file() else tokenizer / TOKENIZER_FILE
    if tokenizer.is_file() and path != tokenizer:  # transformers looks for this name, and for others beside it
        raise DataError(
            f"--tokenizer {tokenizer}: a tokenizer is read as {TOKENIZER_FILE}; name the folder that has it"
        )
    if not path.is_file():
        raise DataError(f"--tokenizer {tokenizer}: there is no {path}; name a folder with {TOKENIZER_FILE}")
    loaded = load_tokenizer(str(path.parent), "--tokenizer")
    found = fingerprint(loaded, path)
    if found != info_sha256:
        raise DataError(f"--tokenizer {tokenizer} has fingerprint {found}, the cache's data was made with "
                        f"{info_sha256}; name that one's folder")  # fmt: skip
    return lambda token: repr(loaded.backend_tokenizer.decode([token], skip_special_tokens=False))


def locate_sample(cache: OpenedCache, number: int) -> tuple[CachedShard, int]:
    """The shard of sample `number` and its number there; counted over the data, or the shards if it is not given.

    Raises:
        DataError: there is no such sample, or its shard is not in the cache.
    """
    total = 0
    for shard in cache.shards:
        listed = shard.listed
        length = len(load_checked_index(cache, shard, None)) if listed is None else listed.num_samples
        first = total if shard.first is None else shard.first
        if first <= number < first + length:
            return shard, number - first
        total = first + length
    raise DataError(f"there is no sample {number} in the {len(cache.shards)} shards of {cache.folder}")


def show_sample(cache: OpenedCache, dataset: PackedDataset | None, number: int, view: View) -> str:
    """Sample `number` for reading.

    Raises:
        DataError: there is no such sample, or it is damaged or not the data's.
    """
    shard, number_in_shard = locate_sample(cache, number)
    row = load_checked_index(cache, shard, dataset)[number_in_shard]
    path = cache.folder / f"{shard.name}.tar"
    read_checked_sample(cache, shard, number_in_shard, row, dataset)
    key, positions, members = decode_cached_sample(
        read_bytes(path, row, cache.info), cache.info, int(row["tokens"]), f"{path}: sample {number_in_shard}"
    )
    signal = signal_from_members(cache.info.signal, members, len(positions))
    tokens = None if dataset is None else dataset[number].input_ids
    of = "" if tokens is None else f" of {len(tokens):,} tokens"
    lines = [
        f"sample {number}: key {key}, number {number_in_shard} of {path.name}",
        f"  {len(positions):,} positions{of}: {_ranges(positions)}",
        f"  {row['length']:,} bytes",
    ]
    shown = np.unique(np.linspace(0, len(positions) - 1, min(view.num_positions, len(positions))).astype(int))
    return "\n".join(lines + [_show_position(signal, int(n), int(positions[n]), tokens, view) for n in shown])


def describe_spec(spec: SignalSpec) -> str:
    """The spec for reading, such as "topk, k 64, vocab_size 151936"."""
    fields = spec_to_json(spec)
    return ", ".join([fields.pop("kind"), *(f"{name} {value}" for name, value in fields.items())])


def describe_teacher(info: TeacherInfo) -> str:
    """Whose signals they are, in one line."""
    return (
        f"teacher {escape_controls(info.teacher_name)} in {info.base_dtype}, signal {describe_spec(info.signal)}, "
        f"positions {info.positions}, compression {info.compression}"
        + (f", later masses of {info.later_mass_samples} samples" if info.later_mass_samples else "")
    )


def _ranges(positions: np.ndarray) -> str:
    """ "0-117, 130-299", cut where there are many."""
    if not len(positions):
        return "none"
    parts = np.split(positions, np.flatnonzero(np.diff(positions) != 1) + 1)
    shown = ", ".join(f"{part[0]}-{part[-1]}" if len(part) > 1 else str(part[0]) for part in parts[:MAX_RANGES])
    return shown + (f" and {len(parts) - MAX_RANGES} more stretches" if len(parts) > MAX_RANGES else "")


def _show_position(signal: Signal, row: int, position: int, tokens: np.ndarray | None, view: View) -> str:
    text = f"    {position}: "
    if tokens is not None:
        token, following = (view.show_token(int(id_)) for id_ in tokens[position : position + 2])
        text += f"after {token} comes {following}; "
    if isinstance(signal, HiddenSignal):
        hidden = signal.select(np.array([row])).decode()[0].astype(np.float64)
        return f"{text}hidden state of norm {np.linalg.norm(hidden):.4g}, {hidden.min():.4g} to {hidden.max():.4g}"
    guesses = compute_guesses(signal, row)
    named = ", ".join(f"{view.show_token(token)} {share:.2%}" for token, share in guesses[: view.num_guesses])
    rest = max(0.0, 1 - sum(share for _, share in guesses[: view.num_guesses]))
    entropy = f", entropy {signal.entropy[row]:.4g} nats" if isinstance(signal, SampledSignal) else ""
    return f"{text}teacher: {named}, all others {rest:.2%}{entropy}"


def compute_guesses(signal: Signal, row: int) -> list[tuple[int, float]]:
    """Token ids with their probability (of draws: their share), likeliest first, of the signal's position `row`."""
    one = signal.select(np.array([row]))
    if isinstance(one, TopKSignal):
        return list(zip(one.ids[0].tolist(), np.exp(one.log_probs[0].astype(np.float64)).tolist(), strict=True))
    order = np.argsort(-one.counts.astype(np.int64), kind="stable")
    shares = one.counts[order] / one.counts.sum(dtype=np.int64)
    return list(zip(one.ids[order].tolist(), shares.tolist(), strict=True))


def _parse(argv: list[str] | None) -> argparse.Namespace:
    summary, rest = (__doc__ or "").split("\n\n")
    parser = ToolParser("pipeline.teacher.inspect", summary, rest)
    parser.add_argument("folder", type=Path, metavar="CACHE", help="teacher cache, finished or not")
    parser.add_argument("samples", type=int, nargs="*", metavar="SAMPLE", help="numbers from 0 (default: 0)")
    parser.add_argument("--data", metavar="DIR", help="packed data folder (or URL) that the cache was made of")
    parser.add_argument("--tokenizer", type=Path, metavar="PATH", help="folder with the data's tokenizer.json")
    parser.add_argument("--positions", type=int, default=8, metavar="N", help="positions to show (default: 8)")
    parser.add_argument("--guesses", type=int, default=5, metavar="N", help="tokens to show at each (default: 5)")
    arguments = parser.parse_args(argv)
    for name in ("positions", "guesses"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name}: must be >= 1, found {getattr(arguments, name)}")
    return arguments


def _show(arguments: argparse.Namespace) -> None:
    dataset = None if arguments.data is None else PackedDataset(arguments.data)
    cache = open_cache(arguments.folder, dataset)
    numbers = arguments.samples or [0]
    for number in numbers:  # a wrong number is named before anything is shown
        locate_sample(cache, number)
    show_token: ShowToken = str
    if arguments.tokenizer is not None:
        show_token = load_token_texts(cache.info.tokenizer_sha256, arguments.tokenizer)
    print(describe_teacher(cache.info))
    view = View(show_token, arguments.positions, arguments.guesses)
    for number in numbers:
        print(show_sample(cache, dataset, number, view))


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    sys.stdout.reconfigure(errors="backslashreplace")  # a terminal without Unicode shows escapes
    arguments = _parse(argv)
    return run_tool(lambda: _show(arguments))


if __name__ == "__main__":
    sys.exit(main())
