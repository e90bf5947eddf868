"""Selection of input files: folders, globs, lists, filters, and names that do not depend on the machine."""

from dataclasses import replace
from pathlib import Path

import pytest

from data_prep.inputs import ReadingSpec, find_inputs
from pipeline.data.shard_format import DataError

SPEC = ReadingSpec(text_field="text", extensions=(".txt", ".jsonl"), exclude=(), min_bytes=0)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "docs"
    for name, size in (("b.txt", 10), ("a/z.txt", 20), ("a/y.jsonl.gz", 30), ("a/code.c", 40), ("c/x.TXT", 5)):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x" * size)
    return root


def _names(inputs: list[str], spec: ReadingSpec = SPEC) -> list[str]:
    return [file.name for file in find_inputs(inputs, spec)[0]]


def test_folder_is_read_recursively_by_extension_and_sorted(tree: Path) -> None:
    files, skipped = find_inputs([str(tree)], SPEC)
    assert [(f.name, f.format, f.compression, f.size) for f in files] == [
        ("a/y.jsonl.gz", "jsonl", "gzip", 30),
        ("a/z.txt", "text", None, 20),
        ("b.txt", "text", None, 10),
        ("c/x.TXT", "text", None, 5),
    ]
    assert skipped == {"excluded": 0, "below_min_bytes": 0}


def test_named_file_is_read_whatever_its_extension(tree: Path) -> None:
    assert _names([str(tree / "a/code.c")]) == ["code.c"]


def test_glob_list_and_repetition_give_each_file_once(tree: Path, tmp_path: Path) -> None:
    listed = tmp_path / "list.txt"
    listed.write_text(f"{tree}/b.txt\n\n{tree}/a/*.txt\n")
    assert _names([f"@{listed}", f"{tree}/**/*.txt", str(tree / "b.txt")]) == ["a/z.txt", "b.txt"]


def test_order_of_inputs_and_place_of_the_tree_do_not_matter(tree: Path, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere" / "docs"
    moved.parent.mkdir()
    expected = _names([str(tree / "b.txt"), str(tree / "a")])
    assert _names([str(tree / "a"), str(tree / "b.txt")]) == expected
    tree.rename(moved)
    assert _names([str(moved / "b.txt"), str(moved / "a")]) == expected


def test_filters_count_what_they_leave_out(tree: Path) -> None:
    files, skipped = find_inputs([str(tree)], replace(SPEC, exclude=("*/a/*", "b.*"), min_bytes=1))
    assert [f.name for f in files] == ["x.TXT"] and skipped == {"excluded": 3, "below_min_bytes": 0}
    files, skipped = find_inputs([str(tree)], replace(SPEC, min_bytes=20))
    assert [f.name for f in files] == ["y.jsonl.gz", "z.txt"] and skipped == {"excluded": 0, "below_min_bytes": 2}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("{tree}/none.txt", "--inputs .*none.txt: no such file or folder"),
        ("{tree}/*.rst", "no such file or folder, and no file matches it"),
        ("@{tree}/none.lst", "the list cannot be read"),
        ("nosuchprotocol://x/y", "nosuchprotocol"),
    ],
)
def test_what_cannot_be_found_is_named(tree: Path, given: str, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        find_inputs([given.format(tree=tree)], SPEC)
    assert "\n" not in str(caught.value)


def test_folder_or_filter_that_leaves_nothing_is_refused(tree: Path) -> None:
    with pytest.raises(DataError, match=r"no file there ends in one of --extensions .rst"):
        find_inputs([str(tree)], replace(SPEC, extensions=(".rst",)))
    with pytest.raises(DataError, match="smaller than --min_bytes 1000: 4"):
        find_inputs([str(tree)], replace(SPEC, min_bytes=1000))
