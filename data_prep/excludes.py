"""Which files of a source its `exclude` patterns leave out. A pattern that leaves out none is refused.

A pattern without a slash is matched against the names of files and of the folders that they lie in, from the given
input folder on down. One with a slash is a path: absolute, a URL, or relative to the working folder (in a sources file:
to its folder), to a given input folder or the folder around it, or to the folder that all files share. What fits a
folder leaves out all that lies below it; with a slash at its end a pattern fits folders only.
"""

import glob
import os
import posixpath
import re
from collections.abc import Callable, Collection, Iterator
from difflib import get_close_matches
from fnmatch import translate
from itertools import product

from data_prep.sources import Source
from pipeline.data.shard_format import DataError

MAGIC = re.compile(r"[*?\[]")
NUM_SHOWN, NUM_COMPARED = 3, 1000
Fits = Callable[[str], object]


def find_excluded(source: Source, urls: Collection[str], roots: Collection[str], shared: str) -> set[str]:
    """The URLs that at least one pattern of `source.exclude` leaves out.

    Args:
        source: its `folder` is where relative patterns start.
        urls: of the source's files; those of this machine begin with file://.
        roots: URLs of the folders that were given or that a given glob begins with.
        shared: URL of the folder that all files share.

    Raises:
        DataError: a pattern that is blank or matches no file.
    """
    files = {url: _path(url) for url in urls}
    tops = {_parent(_path(root)) for root in roots}
    anchors = {*tops, *map(_path, roots), _path(shared), _parent(_path(shared))}
    excluded: set[str] = set()
    for given in source.exclude:
        pattern, folders_only = _normalise(given), given.endswith("/")
        if "/" in pattern or "/" in given.rstrip("/"):  # ./a.txt is a path
            found = _find_paths(pattern, folders_only, files, anchors, os.path.abspath(source.folder))
        else:
            found = _find_names(pattern, folders_only, files, tops, _path(shared))
        if not found:
            raise _no_match(source, given, files.values(), anchors)
        excluded |= found
    return excluded


def _path(url: str) -> str:
    """The path of a file or folder of this machine, else the URL with two slashes; none at its end."""
    return re.sub("://+", "://", url.removeprefix("file://"), count=1).rstrip("/")


def _parent(path: str) -> str:
    return path.rpartition("/")[0]


def _normalise(given: str) -> str:
    """The pattern without what does not change its meaning; `.` and `..` become paths."""
    if not given.strip():  # it would mean the working folder
        raise DataError("--exclude: a pattern is blank; name a file, a folder or a glob")
    path = given.removeprefix("file://")
    if "://" in path:
        return _path(path)
    normal = re.sub("^/+", "/", posixpath.normpath(os.path.expanduser(path) if path.startswith("~/") else path))
    return f"{normal}/" if normal in (".", "..") else normal


def _find_names(name: str, folders_only: bool, files: dict[str, str], tops: set[str], shared: str) -> set[str]:
    """Files whose name fits, or that of a folder around them: from the given one on down, else below the shared one."""
    parts = {}
    for url, path in files.items():
        names = (next(_tails(path, tops), None) or next(_tails(path, {shared}), path)).split("/")
        parts[url] = names[:-1] if folders_only else names
    as_spelled = {url for url, names in parts.items() if name in names}
    fits = re.compile(translate(name)).match
    return as_spelled or {url for url, names in parts.items() if any(map(fits, names))}


def _find_paths(pattern: str, folders_only: bool, files: dict[str, str], anchors: set[str], base: str) -> set[str]:
    """Files whose path fits, or that of a folder around them: as it is spelled, else as a glob, else behind links."""
    if "://" in pattern:
        kinds = ((_literal(pattern, folders_only), None), (_glob(pattern, folders_only), None))
    else:
        fixed, rest = split_fixed(pattern)
        fixed = posixpath.normpath(posixpath.join(base, fixed))
        whole = posixpath.join(glob.escape(fixed), rest)
        relative = None if pattern.startswith("/") else pattern
        kinds = tuple(
            (fits(absolute, folders_only), relative and fits(relative, folders_only))
            for fits, absolute in ((_literal, posixpath.normpath(posixpath.join(base, pattern))), (_glob, whole))
        )
    for fits, fits_tail in kinds:
        found = {url for url, path in files.items() if fits(path)}
        if fits_tail is not None:
            found |= {url for url, path in files.items() if any(map(fits_tail, _tails(path, anchors)))}
        if found:
            return found
    if "://" in pattern:
        return set()
    fits = _glob(posixpath.join(glob.escape(os.path.realpath(fixed)), rest), folders_only)
    return {url for url, path in files.items() if path.startswith("/") and fits(os.path.realpath(path))}


def split_fixed(pattern: str) -> tuple[str, str]:
    """The folders that a pattern begins with, and the rest from its first part that is a glob on."""
    parts = pattern.split("/")
    num_fixed = next((number for number, part in enumerate(parts) if MAGIC.search(part)), len(parts))
    return "/".join(parts[:num_fixed]) or ("/" if pattern.startswith("/") else ""), "/".join(parts[num_fixed:])


def _tails(path: str, anchors: set[str]) -> Iterator[str]:
    """The path relative to each of the anchors that it lies below, longest first."""
    end = path.find("/")
    while end >= 0:
        if path[:end] in anchors:
            yield path[end + 1 :]
        end = path.find("/", end + 1)


def _literal(pattern: str, folders_only: bool) -> Fits:
    folder = f"{pattern.rstrip('/')}/"
    return lambda path: path.startswith(folder) or (not folders_only and path == pattern)


def _glob(pattern: str, folders_only: bool) -> Fits:
    """`*` also matches slashes, and `**/` nothing too."""
    pieces = pattern.rstrip("/").split("**/")
    spelled = {
        "".join(piece + joint for piece, joint in zip(pieces, (*joints, ""), strict=True))
        for joints in product(("", "**/"), repeat=len(pieces) - 1)
    }
    whole = [] if folders_only else list(spelled)
    return re.compile("|".join(map(translate, [*whole, *(f"{one}/*" for one in spelled)]))).match


def _no_match(source: Source, given: str, paths: Collection[str], anchors: set[str]) -> DataError:
    names = [next(reversed([path, *_tails(path, anchors)])) for path in list(paths)[:NUM_COMPARED]]
    near = get_close_matches(given, names, NUM_SHOWN, cutoff=0)
    more = f" and {len(paths) - len(near):,} more" if len(paths) > len(near) else ""
    return DataError(
        f"--exclude {given!r} matches none of the files of source {source.name!r} ({', '.join(near)}{more}); give a "
        "name, a path (absolute, or relative to an input folder or the working folder) or a glob of one of these"
    )
