"""Which files a run reads: expands files, folders, globs and lists, in an order that depends on nothing else."""

import posixpath
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from itertools import takewhile
from pathlib import Path

from fsspec.core import url_to_fs

from pipeline.data.shard_format import DataError

COMPRESSIONS = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2", ".xz": "xz"}
FORMATS = {".jsonl": "jsonl", ".json": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"}


@dataclass(frozen=True)
class ReadingSpec:
    """Which files of the inputs are read, and how. Sizes in bytes as stored."""

    text_field: str
    extensions: tuple[str, ...]
    exclude: tuple[str, ...]
    min_bytes: int


@dataclass(frozen=True)
class InputFile:
    """One file. `name` is its path below the folder that all inputs share, so it does not depend on the
    machine.
    """

    url: str
    name: str
    format: str
    size: int

    @property
    def compression(self) -> str | None:
        return COMPRESSIONS.get(posixpath.splitext(self.url)[1])


def find_inputs(inputs: Iterable[str], reading: ReadingSpec) -> tuple[list[InputFile], dict[str, int]]:
    """Expands files, folders (recursively), globs and `@lists` into files sorted by name.

    Returns:
        The files, and how many were left out: {"excluded" | "below_min_bytes": count}. Files of a folder
        whose extension is not asked for do not count: they were never selected.

    Raises:
        DataError: an input that does not exist or matches nothing, or nothing left to read.
    """
    sizes: dict[str, int] = {}
    for given in _expand_lists(inputs):
        sizes.update(_expand(given, reading.extensions))
    skipped = {"excluded": 0, "below_min_bytes": 0}
    for url in list(sizes):
        if any(fnmatch(url, pattern) or fnmatch(posixpath.basename(url), pattern) for pattern in reading.exclude):
            skipped["excluded"] += 1
            del sizes[url]
        elif sizes[url] < reading.min_bytes:
            skipped["below_min_bytes"] += 1
            del sizes[url]
    if not sizes:
        raise DataError(
            f"--inputs: no file is left to read (excluded: {skipped['excluded']}, smaller than --min_bytes "
            f"{reading.min_bytes}: {skipped['below_min_bytes']})"
        )
    depth = _shared_depth(min(sizes), max(sizes))  # whatever sorts in between shares it too
    files = [InputFile(url, "/".join(url.split("/")[depth:]), _format(url), sizes[url]) for url in sorted(sizes)]
    return files, skipped


def _shared_depth(first: str, last: str) -> int:
    """How many leading folders two paths share."""
    pairs = zip(first.split("/")[:-1], last.split("/")[:-1], strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def _expand_lists(inputs: Iterable[str]) -> Iterator[str]:
    """Replaces `@FILE` by the lines of FILE, each an input as it would be on the command line."""
    for given in inputs:
        if not given.startswith("@"):
            yield given
            continue
        try:
            lines = Path(given[1:]).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"--inputs {given}: the list cannot be read ({error})") from error
        yield from (line for line in lines if line.strip())


def _expand(given: str, extensions: tuple[str, ...]) -> dict[str, int]:
    """The files that one input stands for: url -> size in bytes."""
    try:
        fs, path = url_to_fs(given)
        if fs.isfile(path):
            found = {path: fs.info(path)}
        elif fs.isdir(path):
            below = fs.find(path, detail=True).items()
            found = {name: info for name, info in below if _extension(name) in extensions}
        else:
            found = {name: info for name, info in fs.glob(path, detail=True).items() if info["type"] == "file"}
    except (OSError, ImportError, ValueError) as error:
        raise DataError(f"--inputs {given}: cannot be read ({error})") from error
    if not found:
        if fs.isdir(path):
            raise DataError(f"--inputs {given}: no file there ends in one of --extensions {' '.join(extensions)}")
        raise DataError(f"--inputs {given}: no such file or folder, and no file matches it as a glob")
    return {fs.unstrip_protocol(name): info["size"] for name, info in found.items()}


def _extension(path: str) -> str:
    """The file's extension in lower case, without the one of a compression: `a.jsonl.gz` -> `.jsonl`."""
    stem, extension = posixpath.splitext(path)
    return (posixpath.splitext(stem)[1] if extension in COMPRESSIONS else extension).lower()


def _format(url: str) -> str:
    return FORMATS.get(_extension(url), "text")
