"""Selection of input files: folders, globs, lists, filters, and names that do not depend on the machine."""

import os
from pathlib import Path

import pytest

from data_prep.inputs import LEFT_OUT, InputFile, find_inputs
from data_prep.readers.stored import open_stored
from data_prep.sources import Source
from pipeline.data.shard_format import DataError


def _find(inputs: list[Path | str], **changes: object) -> tuple[list[InputFile], dict[str, int]]:
    source = Source("web", [str(given) for given in inputs], **({"extensions": [".txt", ".jsonl"]} | changes))
    files, skipped = find_inputs(source)
    assert tuple(skipped) == LEFT_OUT
    return files, {reason: count for reason, count in skipped.items() if count}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "docs"
    for name, size in (("b.txt", 10), ("a/z.txt", 20), ("a/y.jsonl.gz", 30), ("a/code.c", 40), ("c/x.TXT", 5)):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x" * size)
    return root


def _names(inputs: list[Path | str], **changes: object) -> list[str]:
    return [file.name for file in _find(inputs, **changes)[0]]


def test_folder_is_read_recursively_by_extension_and_sorted(tree: Path) -> None:
    files, skipped = _find([tree])
    assert [(f.name, f.format, f.compression, f.size) for f in files] == [
        ("a/y.jsonl.gz", "jsonl", "gzip", 30),
        ("a/z.txt", "text", None, 20),
        ("b.txt", "text", None, 10),
        ("c/x.TXT", "text", None, 5),
    ]
    assert skipped == {} and {f.source for f in files} == {"web"}


def test_named_file_is_read_whatever_its_extension(tree: Path) -> None:
    assert _names([tree / "a/code.c"]) == ["code.c"]


def test_glob_list_and_repetition_give_each_file_once(tree: Path, tmp_path: Path) -> None:
    listed = tmp_path / "list.txt"
    listed.write_text(f"{tree}/b.txt\n\n{tree}/a/*.txt\n")
    assert _names([f"@{listed}", f"{tree}/**/*.txt", str(tree / "b.txt")]) == ["a/z.txt", "b.txt"]


def test_lists_end_their_lines_as_any_system_does_and_names_keep_odd_characters(tree: Path, tmp_path: Path) -> None:
    listed, odd = tmp_path / "list.txt", "a\u2028b\x0bc\x85.txt"
    (tree / odd).write_text("x")
    listed.write_bytes(f"{tree}/b.txt\r\n\r\n{tree}/{odd}\r\n{tree}/a/z.txt".encode())
    assert _names([f"@{listed}"]) == ["a/z.txt", odd, "b.txt"]


def test_order_of_inputs_and_place_of_the_tree_do_not_matter(tree: Path, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere" / "docs"
    moved.parent.mkdir()
    expected = _names([str(tree / "b.txt"), str(tree / "a")])
    assert _names([str(tree / "a"), str(tree / "b.txt")]) == expected
    tree.rename(moved)
    assert _names([str(moved / "b.txt"), str(moved / "a")]) == expected


def test_filters_count_what_they_leave_out(tree: Path) -> None:
    files, skipped = _find([tree], exclude=["*/a/*", "b.*"], min_bytes=1)
    assert [f.name for f in files] == ["x.TXT"] and skipped == {"excluded": 3}
    files, skipped = _find([tree], min_bytes=20)
    assert [f.name for f in files] == ["y.jsonl.gz", "z.txt"] and skipped == {"below_min_bytes": 2}


def test_extensions_and_compressions_are_told_apart_whatever_their_case(tmp_path: Path) -> None:
    (tmp_path / "a.JSONL.GZ").write_bytes(b"x")
    (file,) = _find([tmp_path], extensions=[".JsonL"])[0]
    assert (file.format, file.compression) == ("jsonl", "gzip")


def test_code_trees_are_read_by_default_without_what_is_hidden(tmp_path: Path) -> None:
    for name in ("src/main.rs", "src/k.cu", "README.md", "logo.png", ".git/hooks/x.py", "src/._main.rs", ".env.sh"):
        (tmp_path / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "tree" / name).write_text("x")
    files, skipped = find_inputs(Source("code", [str(tmp_path / "tree")]))
    assert [file.name for file in files] == ["README.md", "src/k.cu", "src/main.rs"] and skipped["hidden"] == 3
    assert _names([tmp_path / "tree/.git"], extensions=[".py"]) == ["x.py"], "a hidden folder that is named itself"


def test_links_are_read_as_files_but_not_followed_as_folders(tree: Path, tmp_path: Path) -> None:
    links = tmp_path / "links"
    links.mkdir()
    (links / "b.txt").symlink_to(tree / "b.txt")
    (links / "up").symlink_to(links, target_is_directory=True)
    (links / "gone.txt").symlink_to(tree / "none.txt")
    files, skipped = _find([links])
    assert [(f.name, f.size) for f in files] == [("b.txt", 10)]
    assert skipped == {"linked_folder": 1, "not_a_file": 1}
    assert _names([f"{links}/b*"]) == ["b.txt"]


@pytest.mark.timeout(20)
def test_fifo_is_refused_or_counted_and_never_waited_for(tree: Path) -> None:
    os.mkfifo(tree / "pipe.txt")
    assert _find([tree])[1] == {"not_a_file": 1}
    for given in (tree / "pipe.txt", tree / "pipe*"):
        with pytest.raises(DataError, match="not a regular file"):
            _find([given])
    with pytest.raises(DataError, match="the list is not a regular file"):
        _find([f"@{tree}/pipe.txt"])


def test_file_name_that_is_not_utf8_is_refused(tree: Path) -> None:
    (tree / os.fsdecode(b"\xff.txt")).write_bytes(b"x")
    with pytest.raises(DataError, match="is not UTF-8; rename the file or --exclude it") as caught:
        _find([tree])
    str(caught.value).encode()
    assert len(_names([tree], exclude=["*/?.txt"])) == 2


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("{tree}/none.txt", "--inputs .*none.txt: no such file or folder"),
        ("{tree}/*.rst", "no such file or folder, and no file matches it"),
        ("@{tree}/none.lst", "the list cannot be read"),
        ("@{tree}", "the list is not a regular file"),
        ("nosuchprotocol://x/y", "nosuchprotocol"),
    ],
)
def test_what_cannot_be_found_is_named(tree: Path, given: str, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        _find([given.format(tree=tree)])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("given", ["", "  "])
def test_blank_input_is_refused_and_not_the_working_directory(tree: Path, given: str) -> None:
    with pytest.raises(DataError, match="source 'web' has a blank input"):
        _find([tree, given])


def test_every_spelling_of_a_file_is_the_same_file(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tree.parent)
    given = ["docs", "./docs/", tree, "docs/../docs", "docs//b.txt", "docs/./a/*.txt", f"file://{tree}", f"/{tree}"]
    assert _names(given) == _names([tree])
    assert [file.url for file in _find(given)[0]] == [file.url for file in _find([tree])[0]]


def test_dots_behind_a_linked_folder_lead_where_the_system_says(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "far/sub").mkdir(parents=True)
    (tmp_path / "far/b.txt").write_text("far")
    (tree / "link").symlink_to(tmp_path / "far/sub")
    assert [file.size for file in _find([f"{tree}/link/../b.txt"])[0]] == [3]


ODD_NAMES = [
    "a::b.txt",
    "file:x.txt",
    "[i].txt",
    "zip:y.txt",
    "memory:::z.txt",
    "c#d.txt",
    "g*h.txt",
    "~t.txt",
    "-d.txt",
]


def test_names_that_look_like_urls_and_globs_are_read_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "x::y").mkdir()
    for name in ODD_NAMES:
        (tmp_path / "x::y" / name).write_text(name)
    monkeypatch.chdir(tmp_path / "x::y")
    for given in (ODD_NAMES, [tmp_path / "x::y"]):
        files = _find(given)[0]
        assert [file.name for file in files] == sorted(ODD_NAMES)
        for file in files:
            with open_stored(file) as stored:
                assert stored.read().decode() == file.name


def test_folder_or_filter_that_leaves_nothing_is_refused(tree: Path) -> None:
    with pytest.raises(DataError, match=r"no file there ends in one of --extensions .rst"):
        _find([tree], extensions=[".rst"])
    with pytest.raises(DataError, match=r"no file of source 'web' is left to read \(below_min_bytes: 4\)"):
        _find([tree], min_bytes=1000)
