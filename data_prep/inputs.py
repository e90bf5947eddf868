"""Which files a source reads: expands files, folders, globs and lists, in an order that depends on nothing else."""

import os
import posixpath
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Literal

from fsspec import AbstractFileSystem
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from data_prep.excludes import find_excluded, split_fixed
from data_prep.sources import Source
from pipeline.data.shard_format import DataError

FileFormat = Literal["text", "jsonl", "parquet", "arrow"]
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2", ".xz": "xz"}
FORMATS: dict[str, FileFormat] = {
    ".jsonl": "jsonl",
    ".json": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
    ".arrow": "arrow",
}
ARCHIVES = (".tar", ".tgz", ".tbz2", ".txz", ".zip", ".7z", ".rar")
LEFT_OUT = ("excluded", "below_min_bytes", "hidden", "not_a_file", "linked_folder")


@dataclass(frozen=True)
class InputFile:
    """One file of a source; `size` in bytes as stored.

    `name` is its path below the folder that all of the source's inputs share, so it does not depend on the
    machine. It is unique in its source.
    """

    source: str
    url: str
    name: str
    format: FileFormat
    size: int

    @property
    def compression(self) -> str | None:
        return COMPRESSIONS.get(posixpath.splitext(self.url)[1].lower())


def open_file_system(url: str) -> tuple[AbstractFileSystem, str]:
    """The file system that an InputFile's `url` lies on, and its path there."""
    if url.startswith("file://"):  # as it is: fsspec would take a `::` in a file's name for a chain of URLs
        return LocalFileSystem(), url.removeprefix("file://")
    return url_to_fs(url)


def find_inputs(source: Source) -> tuple[list[InputFile], dict[str, int]]:
    """Expands the source's files, folders (recursively), globs and `@lists` into files sorted by name.

    Returns:
        The files, and how many were left out, a count for each of LEFT_OUT: `hidden` ones lie in a given folder
        under a name that begins with a dot (.git); `linked_folder` counts links to folders, which are not followed;
        `not_a_file` is a FIFO, a device or a link to nothing. Files of a folder whose extension is not asked for
        do not count: they were never selected.

    Raises:
        DataError: an input that does not exist, is no file or matches nothing, or nothing left to read.
    """
    skipped = dict.fromkeys(LEFT_OUT, 0)
    sizes: dict[str, int] = {}
    roots: set[str] = set()  # the folders that were given, or that a glob begins with
    for given in _expand_lists(source):
        found, root = _expand(given, source, skipped)
        sizes.update(found)
        roots.update(root)
    excluded = find_excluded(source, sizes, roots, _shared_folder(sizes)) if source.exclude and sizes else set()
    skipped["excluded"] = len(excluded)
    for url in list(sizes):
        if url in excluded:
            del sizes[url]
        elif sizes[url] < source.min_bytes:
            skipped["below_min_bytes"] += 1
            del sizes[url]
    if not sizes:
        counts = ", ".join(f"{reason}: {count}" for reason, count in skipped.items() if count)
        raise DataError(
            f"--inputs: no file of source {source.name!r} is left to read ({counts}); "
            f"see --exclude and --min_bytes {source.min_bytes}"
        )
    shared = _shared_folder(sizes)
    return [_input_file(source, url, shared, sizes[url]) for url in sorted(sizes)], skipped


def _input_file(source: Source, url: str, shared: str, size: int) -> InputFile:
    name = url[len(shared) + 1 :] if shared else url
    try:
        name.encode()
    except UnicodeEncodeError as error:  # the file system allows any bytes; the manifest is JSON
        raise DataError(f"--inputs: the name {name!r} is not UTF-8; rename the file or --exclude it") from error
    return InputFile(source.name, url, name, FORMATS.get(extension_of(url), "text"), size)


def _shared_folder(urls: Iterable[str]) -> str:
    """The deepest folder that all of them lie in."""
    folders = [url.split("/")[:-1] for url in (min(urls), max(urls))]  # whatever sorts in between shares it too
    return "/".join(first for first, last in takewhile(lambda pair: pair[0] == pair[1], zip(*folders, strict=False)))


def _expand_lists(source: Source) -> Iterator[str]:
    """Replaces `@FILE` by the lines of FILE, each an input as it would be on the command line."""
    for given in source.inputs:
        if not given.strip():  # it would mean the working directory
            raise DataError(f"--inputs: source {source.name!r} has a blank input; name a file, folder, glob or @list")
        if not given.startswith("@"):
            yield given
            continue
        path = Path(given[1:])
        if path.exists() and not path.is_file():  # to open a FIFO would wait for ever
            raise DataError(f"--inputs {given}: the list is not a regular file")
        try:
            lines = path.read_text(encoding="utf-8").split("\n")  # splitlines would cut names with odd characters
        except (OSError, ValueError) as error:
            raise DataError(f"--inputs {given}: the list cannot be read ({error})") from error
        yield from (line for line in lines if line.strip())


def _expand(given: str, source: Source, skipped: dict[str, int]) -> tuple[dict[str, int], list[str]]:
    """The files that one input stands for (url -> size in bytes), and the folder that was given or a glob begins with:
    none for a file.
    """
    num_before = skipped["not_a_file"]
    try:
        fs, path = _locate(given)
        is_folder = fs.isdir(path)
        roots = [path] if is_folder else []
        if fs.isfile(path):
            found = {path: fs.info(path)}
        elif is_folder:
            found = _below(fs, path, source.extensions, skipped)
        else:
            found = dict(_regular(fs, fs.glob(path, detail=True).items(), skipped))
            roots = [split_fixed(path)[0]]
    except (OSError, ImportError, ValueError) as error:
        raise DataError(f"--inputs {given}: cannot be read ({error})") from error
    if not found:
        if skipped["not_a_file"] > num_before:
            raise DataError(f"--inputs {given}: not a regular file (a FIFO, device, socket or dangling link?)")
        if is_folder:
            extensions = " ".join(source.extensions)
            raise DataError(f"--inputs {given}: no file there ends in one of --extensions {extensions}")
        raise DataError(f"--inputs {given}: no such file or folder, and no file matches it as a glob")
    if isinstance(fs, LocalFileSystem):
        return {_local_url(name): info["size"] for name, info in found.items()}, [_local_url(root) for root in roots]
    to_url = fs.unstrip_protocol
    return {to_url(name): info["size"] for name, info in found.items()}, [to_url(root) for root in roots]


def _local_url(path: str) -> str:
    return f"file://{_normalise(path)}"


def _locate(given: str) -> tuple[AbstractFileSystem, str]:
    """The file system of an input and the path (or glob) there; what exists on this machine as spelled is meant so."""
    if os.path.lexists(given):  # fsspec would take `a::b` for a chain of URLs and `file:x` for one
        return LocalFileSystem(), _normalise(os.path.join(os.getcwd(), given))
    return url_to_fs(given)


def _normalise(path: str) -> str:
    """The one spelling of a local path that is kept, so that no file is read twice; links keep their names."""
    normal = "/" + os.path.normpath(path).lstrip("/")
    # Behind a link to a folder `..` leads elsewhere than the spelling says.
    return normal if normal == path or os.path.samefile(normal, path) else path


def _below(fs: AbstractFileSystem, folder: str, extensions: list[str], skipped: dict[str, int]) -> dict[str, dict]:
    """The folder's regular files with one of the extensions, none of them hidden."""
    # A local folder that may not be read would be passed over in silence.
    strict = {"on_error": "raise"} if isinstance(fs, LocalFileSystem) else {}
    wanted = {extension.lower() for extension in extensions}
    entries = fs.find(folder, detail=True, **strict).items()
    found = {}
    for name, info in _regular(fs, entries, skipped, wanted):
        if any(part.startswith(".") for part in name[len(folder) :].split("/")):
            skipped["hidden"] += 1
        else:
            found[name] = info
    return found


def _regular(
    fs: AbstractFileSystem,
    entries: Iterable[tuple[str, dict]],
    skipped: dict[str, int],
    extensions: set[str] | None = None,
) -> Iterator[tuple[str, dict]]:
    """The entries that can be read as files, with one of the extensions where they are given."""
    for name, info in entries:
        if info["type"] == "directory":
            continue
        # fsspec calls a local link neither file nor folder.
        if info["type"] != "file" and fs.isdir(name):
            skipped["linked_folder"] += 1
        elif extensions is None or extension_of(name) in extensions:
            if info["type"] == "file" or fs.isfile(name):
                yield name, info
            else:
                skipped["not_a_file"] += 1


def extension_of(path: str) -> str:
    """The file's extension in lower case, without the one of a compression: `a.jsonl.gz` -> `.jsonl`."""
    stem, extension = posixpath.splitext(path)
    return (posixpath.splitext(stem)[1] if extension.lower() in COMPRESSIONS else extension).lower()
