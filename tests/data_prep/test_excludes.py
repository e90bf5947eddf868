"""`exclude`: every spelling of a file or folder leaves it out, and one that leaves out nothing is refused by name."""

import os
from pathlib import Path

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from data_prep.inputs import find_inputs
from data_prep.sources import Source, load_sources
from pipeline.config import PrepareConfig, parse_cli
from pipeline.data.shard_format import DataError

FILES = (
    "docs/a.txt",
    "docs/held/secret.txt",
    "docs/held/deep/other.txt",
    "docs/x/held/secret.txt",
    "docs/x/test file.txt",
    "docs/[i].txt",
    "docs/i.txt",
    "more/secret.txt",
)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder below one called `test`, with a tree of texts."""
    root = tmp_path / "test" / "project"
    for name in FILES:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    monkeypatch.chdir(root)
    return root


def _left_out(inputs: list[str], exclude: list[str], folder: Path | None = None) -> set[str]:
    """The names of the files, relative to the working folder, that the patterns take away from `inputs`."""
    everything = {file.url for file in find_inputs(Source("web", inputs, extensions=[".txt"]))[0]}
    source = Source("web", inputs, extensions=[".txt"], exclude=exclude)
    files, skipped = find_inputs(source)
    kept = {file.url for file in files}
    assert kept < everything and skipped["excluded"] == len(everything) - len(kept)
    return {os.path.relpath(url.removeprefix("file://")) for url in everything - kept}


HELD = {"docs/held/secret.txt", "docs/held/deep/other.txt"}
SECRET, OTHER, SECOND = "docs/held/secret.txt", "docs/held/deep/other.txt", "docs/x/held/secret.txt"


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("held/secret.txt", {SECRET}),  # of the input folder; the case
        ("docs/held/secret.txt", {SECRET}),
        ("./docs//held/./secret.txt", {SECRET}),
        ("docs/x/../held/secret.txt", {SECRET}),
        ("{root}/docs/held/secret.txt", {SECRET}),
        ("file://{root}/docs/held/secret.txt", {SECRET}),
        ("../project/docs/held/secret.txt", {SECRET}),
        ("../project/docs/held/s*.txt", {SECRET}),
        ("secret.txt", {SECRET, SECOND}),
        ("sec*", {SECRET, SECOND}),
        ("held", {*HELD, SECOND}),
        ("held/", {*HELD, SECOND}),
        ("docs/held", HELD),
        ("docs/held/", HELD),
        ("{root}/docs/held/", HELD),
        ("docs/held/*", HELD),
        ("docs/held/**", HELD),
        ("docs/**/secret.txt", {SECRET, SECOND}),
        ("docs/**/held/**/secret.txt", {SECRET, SECOND}),
        ("**/held/*", {*HELD, SECOND}),
        ("**/a.txt", {"docs/a.txt"}),
        ("*/held/*.txt", {*HELD, SECOND}),
        ("x/test file.txt", {"docs/x/test file.txt"}),
        ("test *", {"docs/x/test file.txt"}),
        ("[i].txt", {"docs/[i].txt"}),  # what is called so as spelled
        ("docs/[i].txt", {"docs/[i].txt"}),
        ("docs/[a].txt", {"docs/a.txt"}),
        ("?.txt", {"docs/a.txt", "docs/i.txt"}),
    ],
)
@pytest.mark.parametrize("given", ["docs", "./docs/", "{root}/docs", "docs/**/*.txt"])
def test_every_spelling_leaves_out_what_it_names(project: Path, given: str, pattern: str, expected: set[str]) -> None:
    assert _left_out([given.format(root=project)], [pattern.format(root=project)]) == expected


@pytest.mark.parametrize(
    ("inputs", "pattern", "expected"),
    [
        (["docs", "more"], "more", {"more/secret.txt"}),
        (["docs", "more"], "more/", {"more/secret.txt"}),
        (["docs", "more"], "secret.txt", {SECRET, SECOND, "more/secret.txt"}),
        (["docs/a.txt", "more/secret.txt"], "more/secret.txt", {"more/secret.txt"}),
        (["docs/a.txt", "more/secret.txt"], "more", {"more/secret.txt"}),
        (["@list"], "held/secret.txt", {SECRET}),  # the name that the summary shows
        (["@list"], "*/held/*", {SECRET}),
        (["docs"], "../../test/project/docs/a.txt", {"docs/a.txt"}),
    ],
)
def test_several_inputs_and_lists(project: Path, inputs: list[str], pattern: str, expected: set[str]) -> None:
    Path("list").write_text(f"{project}/docs/a.txt\ndocs/held/secret.txt\n")
    assert _left_out(inputs, [pattern]) == expected


def test_working_folder_below_the_input(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project / "docs/x")
    assert _left_out([".."], ["held/secret.txt"]) == {"held/secret.txt", "../held/secret.txt"}  # both are so called
    assert _left_out([".."], ["../held"]) == {"../held/secret.txt", "../held/deep/other.txt"}
    assert _left_out([".."], ["./"]) == {"held/secret.txt", "test file.txt"}


@pytest.mark.parametrize("name", ["real", "link"])
def test_links_in_the_input_or_the_pattern(project: Path, name: str) -> None:
    Path("docs").rename("real")
    Path("link").symlink_to("real", target_is_directory=True)
    for pattern in ("{0}/held/secret.txt", "{0}/held/s*.txt", "./{0}/held/secret.txt", str(project / "{0}/held/s*")):
        for spelled in ("real", "link"):
            assert _left_out([name], [pattern.format(spelled)]) == {f"{name}/held/secret.txt"}
    Path("real/linked.txt").symlink_to(project / "more/secret.txt")
    assert _left_out(["real"], ["linked.txt"]) == {"real/linked.txt"}
    assert _left_out(["real"], ["more/secret.txt"]) == {"real/linked.txt"}
    assert _left_out(["real", "more"], ["more/secret.txt"]) == {"more/secret.txt"}, "one of a file's two names"


@pytest.mark.parametrize(
    "pattern",
    ["held/secrt.txt", "nothing", "*.rst", "secret.txt/", "/docs/a.txt", "../docs/a.txt", "test", "test/", "*/test/*",
     "deep/other.txt", "docs/held/secret.txt ", "s3://docs/a.txt", "docs/held/secret"],
)  # fmt: skip
def test_pattern_that_matches_nothing_is_refused_with_names_that_exist(project: Path, pattern: str) -> None:
    """Also one that fits only the folders around the input, which differ between machines."""
    with pytest.raises(DataError) as caught:
        find_inputs(Source("web", ["docs"], extensions=[".txt"], exclude=["a.txt", pattern]))
    message = str(caught.value)
    assert (
        message.startswith(f"--exclude {pattern!r} matches none of the files of source 'web' (") and "\n" not in message
    )
    assert any(name.removeprefix("docs/") in message for name in FILES)


def test_the_nearest_names_are_shown(project: Path) -> None:
    with pytest.raises(DataError, match=r"'held/secrt.txt' matches none of .* \(held/secret.txt, .* and 4 more\)"):
        find_inputs(Source("web", ["docs"], extensions=[".txt"], exclude=["held/secrt.txt"]))


@pytest.mark.parametrize("pattern", ["", " "])
def test_blank_pattern_is_refused(project: Path, pattern: str) -> None:
    with pytest.raises(DataError, match="--exclude: a pattern is blank"):
        find_inputs(Source("web", ["docs"], extensions=[".txt"], exclude=[pattern]))


def test_patterns_of_a_sources_file_start_at_its_folder(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = project.parent / "sources.yaml"
    monkeypatch.chdir(tmp_path)
    for pattern in ("project/docs/held/secret.txt", "./project/docs/held/s*t.txt", "docs/held/secret.txt",
                    "held/secret.txt", f"{project}/docs/held/secret.txt"):  # fmt: skip
        config.write_text(f"sources: [{{name: a, inputs: [project/docs], exclude: ['{pattern}']}}]")
        (source,) = load_sources(config)
        assert source.exclude == [pattern], "as given: the manifest does not depend on the machine"
        files, skipped = find_inputs(source)
        assert skipped["excluded"] == 1 and "held/secret.txt" not in [file.name for file in files]
    config.write_text("sources: [{name: a, inputs: [project/docs], exclude: [test/project/docs/a.txt]}]")
    with pytest.raises(DataError, match="matches none of the files of source 'a'"):
        find_inputs(*load_sources(config))


@pytest.mark.parametrize("setting", ["exclude: ['*.bak']", "min_bytes: 5", "extensions: [.txt]"])
def test_filters_of_files_are_refused_for_a_dataset(tmp_path: Path, setting: str) -> None:
    (tmp_path / "s.yaml").write_text(f"sources: [{{name: a, dataset: {{path: x}}, {setting}}}]")
    with pytest.raises(DataError, match=r"source 'a': \w+ is for `inputs`"):
        load_sources(tmp_path / "s.yaml")
    (tmp_path / "s.yaml").write_text("sources: [{name: a, inputs: [x], folder: y}]")
    with pytest.raises(DataError, match="unknown key 'folder'"):
        load_sources(tmp_path / "s.yaml")


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("held/x.txt", ["a.txt", "b/x.txt"]),
        ("tree/held", ["a.txt", "b/x.txt"]),
        ("x.txt", ["a.txt"]),
        ("memory://tree/held/*", ["a.txt", "b/x.txt"]),
        ("memory:///tree/held/", ["a.txt", "b/x.txt"]),
    ],
)
def test_remote_files(pattern: str, expected: list[str]) -> None:
    files = MemoryFileSystem()
    for name in ("a.txt", "b/x.txt", "held/x.txt"):
        files.pipe(f"/tree/{name}", b"text")
    found, _ = find_inputs(Source("web", ["memory://tree"], exclude=[pattern]))
    assert [file.url.removeprefix("memory:///tree/") for file in found] == expected


def test_inputs_of_two_file_systems_keep_their_names(tmp_path: Path) -> None:
    """They have no folder in common."""
    MemoryFileSystem().pipe("/bucket/c.txt", b"text")
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text("text")
    inputs = [str(tmp_path / "a.txt"), str(tmp_path / "b.txt"), "memory://bucket/c.txt"]
    for pattern in ("b.txt", "b.*"):
        found, _ = find_inputs(Source("both", inputs, exclude=[pattern]))
        assert [file.name for file in found] == [f"file://{tmp_path}/a.txt", "memory:///bucket/c.txt"]


def test_a_dot_and_a_slash_make_a_path_of_a_name(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    for name in ("a.txt", "b.txt", "sub/a.txt"):
        (tmp_path / name).write_text("text")
    for pattern, expected in (("a.txt", ["b.txt"]), ("./a.txt", ["b.txt", "sub/a.txt"])):
        found, _ = find_inputs(Source("s", [str(tmp_path)], exclude=[pattern]))
        assert [file.url.removeprefix(f"file://{tmp_path}/") for file in found] == expected


def test_flag_given_twice_adds_its_patterns(project: Path) -> None:
    flags = ["--inputs", "docs", "--exclude", "a.txt", "i.txt", "--inputs", "more", "--exclude", "held/secret.txt"]
    config = parse_cli(PrepareConfig, ["--tokenizer", "t", "--output", "o", *flags])
    assert config.inputs == ["docs", "more"]
    assert _left_out(config.inputs, config.exclude) == {"docs/a.txt", "docs/i.txt", SECRET}
