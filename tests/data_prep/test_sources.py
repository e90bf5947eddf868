"""The YAML of sources, and folders as datasets: what they mean, and every mistake named in one line."""

import gzip
import json
from pathlib import Path

import pytest

from data_prep.hf_datasets import dataset_inputs
from data_prep.sources import Conversations, DatasetSource, Source, load_sources
from pipeline.data.shard_format import DataError

BAD_TAGS = ["int abc", "int ''", "float x", "bool abc", "timestamp x", "map abc", "map [a]", "binary é"]


def _load(tmp_path: Path, text: str) -> list[Source]:
    path = tmp_path / "sources.yaml"
    path.write_text(text)
    return load_sources(path)


def test_every_setting_and_paths_relative_to_the_file(tmp_path: Path) -> None:
    (tmp_path / "saved").mkdir()
    sources = _load(
        tmp_path,
        """
        sources:
          - {name: books, inputs: [books, "@list.txt", /abs/x.txt, "s3://bucket/x"], weight: 2, exclude: ["*.bak"],
                 min_bytes: 3}
          - name: chat-1
            dataset: {path: saved, split: test, streaming: true}
            weight: 0.5
            conversations: {document_field: document, answers_field: answers}
          - {name: hub, dataset: {path: org/name, revision: null}, weight: 1, text_field: body}
        """,
    )
    assert sources == [
        Source(
            "books",
            [f"{tmp_path}/books", f"@{tmp_path}/list.txt", "/abs/x.txt", "s3://bucket/x"],
            weight=2.0,
            exclude=["*.bak"],
            min_bytes=3,
        ),
        Source(
            "chat-1",
            dataset=DatasetSource(str(tmp_path / "saved"), split="test", streaming=True),
            weight=0.5,
            conversations=Conversations(document_field="document", answers_field="answers"),
        ),
        Source("hub", dataset=DatasetSource("org/name"), weight=1.0, text_field="body"),
    ]


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ("{name: a, input: [x]}", "source 'a': unknown key 'input'; did you mean 'inputs'?"),
        ("{name: a, zzz: 1}", "unknown key 'zzz'; known: name, inputs, dataset, weight"),
        ("{inputs: [x]}", "source 1: 'name' is missing"),
        ("{name: a, dataset: {split: x}}", "source 'a': dataset: 'path' is missing"),
        ("{name: a}", "give `inputs` or `dataset`, found neither"),
        ("{name: a, inputs: [x], dataset: {path: y}}", "give `inputs` or `dataset`, found both"),
        ("{name: a, inputs: x}", "inputs: expected a list of text, found 'x'"),
        ("{name: 3, inputs: [x]}", "name: expected text, found 3"),
        ("{name: a b, inputs: [x]}", "letters, digits, - and _"),
        ("{name: '', inputs: [x]}", "letters, digits, - and _"),
        ("{name: a, inputs: [x], weight: 0}", "weight must be > 0, found 0.0"),
        ("{name: a, inputs: [x], weight: .nan}", "weight must be > 0, found nan"),
        ("{name: a, inputs: [x], weight: true}", "weight: expected a number, found True"),
        ("{name: a, inputs: [x], weight: '1'}", "weight: expected a number, found '1'"),
        ("{name: a, inputs: [x], weight: 1" + "0" * 400 + "}", "weight: the number is too large"),
        ("{name: a, inputs: ['']}", "source 'a': inputs: an entry is blank"),
        ("{name: a, inputs: [x, ' ']}", "source 'a': inputs: an entry is blank"),
        ("{name: a, inputs: [x], weight: 2024-13-45}", "cannot be read as YAML (month must be in 1..12)"),
        *((f"{{name: a, inputs: [x], weight: !!{tag} }}", "cannot be read as YAML") for tag in BAD_TAGS),
        ("{name: a, inputs: [x], min_bytes: -1}", "min_bytes must be >= 0"),
        ("{name: a, inputs: [x], extensions: [txt]}", "extensions begin with a dot, found 'txt'"),
        ("{name: a, inputs: [x]}, {name: a, inputs: [y]}", "two sources are called 'a'"),
        ("{name: a, inputs: [x], weight: 1}, {name: b, inputs: [y]}", "'b' has no weight but others do; give every"),
        ("{name: a, inputs: [x], name: b}", "key 'name' is given twice"),
        (
            "{name: a, inputs: [x], conversations: {document_field: d, document_template: '{document}'}}",
            "{content} once",
        ),
        ("7", "source 1: expected keys of name"),
        ("", "lists no source"),
        ("{name: !!python/object/apply:os.getcwd []}", "cannot be read as YAML"),
    ],
)
def test_mistake_is_named(tmp_path: Path, entries: str, message: str) -> None:
    with pytest.raises(DataError) as caught:
        _load(tmp_path, f"sources: [{entries}]")
    assert message in str(caught.value) and str(caught.value).startswith(f"--sources {tmp_path}/sources.yaml")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "- {name: a}", "sources: 3", "sources: []\nmore: 1", "a: [", "\x00", "*x"])
def test_what_is_no_list_of_sources_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(DataError, match=r"--sources .*sources.yaml.* (cannot be read as YAML|expected one key)"):
        _load(tmp_path, text)


def test_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read as YAML"):
        load_sources(tmp_path / "none.yaml")
    with pytest.raises(DataError, match="is not a regular file"):
        load_sources(tmp_path)


@pytest.fixture
def rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for `load_dataset`, of which it reads everything."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "rows"
    (folder / ".git").mkdir(parents=True)
    for name in ("b.jsonl", "c.jsonl", ".git/x.txt"):
        (folder / name).write_text("\n".join(json.dumps({"text": f"{name} {n}"}) for n in range(3)))
    (folder / "README.md").write_text("rows")
    (folder / "dataset_infos.json").write_text("{}")
    return folder


@pytest.mark.parametrize("streaming", [True, False])
@pytest.mark.parametrize("name", ["a.txt", "deep/a.csv", "a.jsonl.gz", "train.jsonl"])
def test_folder_of_which_a_dataset_reads_a_part_only_is_refused(
    rows: Path, tmp_path: Path, name: str, streaming: bool
) -> None:
    source = Source("hf", dataset=DatasetSource(str(rows), streaming=streaming))
    assert dataset_inputs(source, tmp_path / "spool", 1000)
    (rows / name).parent.mkdir(exist_ok=True)
    (rows / name).write_text('{"text": "more"}')
    left_out = "b.jsonl, c.jsonl" if name == "train.jsonl" else name
    if name == "a.jsonl.gz":  # read like its neighbours
        (rows / name).write_bytes(gzip.compress(b'{"text": "more"}'))
        assert dataset_inputs(source, tmp_path / "other", 1000)
        return
    with pytest.raises(DataError, match=f"source 'hf': `dataset` would leave out {left_out} of .*; `inputs` reads"):
        dataset_inputs(source, tmp_path / "other", 1000)
    (rows / "README.md").write_text("---\nconfigs:\n- config_name: default\n  data_files: b.jsonl\n---\n")
    assert dataset_inputs(source, tmp_path / "chosen", 1000)


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"{",
        b"[]",
        b"\xff",
        b'{"request": 1}',
        b'{"request": {}, "num_rows": 3, "is_finished": true}',
        b"[" * 100_000,
    ],
)
def test_spool_with_a_damaged_state_is_written_again(rows: Path, tmp_path: Path, damage: bytes) -> None:
    source, spool = Source("hf", dataset=DatasetSource(str(rows), streaming=True)), tmp_path / "spool"
    files = dataset_inputs(source, spool, 50)
    content = {path.name: path.read_bytes() for path in spool.iterdir()}
    (spool / "hf.json").write_bytes(damage)
    assert dataset_inputs(source, spool, 50) == files
    (spool / "hf-00001.jsonl").unlink()
    assert dataset_inputs(source, spool, 50) == files
    assert {path.name: path.read_bytes() for path in spool.iterdir()} == content
