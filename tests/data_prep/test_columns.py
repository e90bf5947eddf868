"""A column or field that is missing, there twice or of another type is one line, whichever file has it."""

import bz2
import gzip
import json
import lzma
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from data_prep.inputs import find_inputs
from data_prep.readers import inspect_input, read_documents
from data_prep.sources import Conversations, DatasetSource, Source
from pipeline.data.shard_format import DataError, Manifest

Prepare = Callable[..., Manifest]
MESSAGES = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
SHARE_GPT = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
TWICE = pa.StructArray.from_arrays([pa.array(["user"]), *(pa.array([text]) for text in "ab")],
                                   names=["role", "content", "content"])  # fmt: skip


def _columns(**columns: object) -> pa.Table:
    return pa.table({name: pa.array([value]) for name, value in columns.items()})


TABLES = {
    "missing": (_columns(other="x"), r"has no column 'text' \(--text_field\); its columns: other"),
    "nested": (_columns(data={"text": "x"}), r"has no column 'text' \(--text_field\); its columns: data"),
    "twice": (pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["text", "text"]), "has 2 columns named"),
    "number": (_columns(text=1), r"column 'text' \(--text_field\) holds int64, not strings"),
    "bytes": (_columns(text=b"x"), r"column 'text' \(--text_field\) holds binary, not strings"),
    "list": (_columns(text=["x"]), r"column 'text' \(--text_field\) holds list<.*>, not strings"),
}
ROWS = {
    "missing": (
        {"other": 1},
        r"none of its rows has the field 'text'; set --text_field \(fields of the first: other\)",
    ),
    "null": ({"text": None}, "none of its rows has the field 'text'; set --text_field"),
    "number": ({"text": 1}, r"in none of its rows the field 'text' \(--text_field\) holds strings; found a number"),
    "true": ({"text": True}, "holds strings; found true or false"),
    "no object": (["text"], r"none of its rows has the field 'text'; set --text_field \(fields of the first: none\)"),
    "twice": ('{"text": "a", "text": "b"}', "each of its rows has a key twice; rename or remove one"),
}


def _write(path: Path, table: pa.Table) -> None:
    if path.suffix == ".parquet":
        pq.write_table(table, path)
        return
    with pa.ipc.new_stream(path, table.schema) as writer:
        writer.write_table(table)


def _refusal(run_prepare: Prepare, folder: Path, **settings: object) -> str:
    extensions = [".parquet", ".arrow", ".jsonl"]
    with pytest.raises(DataError) as caught:
        run_prepare([folder], folder.parent / "out", extensions=extensions, **settings)
    assert not list((folder.parent / "out").rglob("*.tar")) and "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("extension", [".parquet", ".arrow"])
@pytest.mark.parametrize("number", [0, 3, 39])
def test_table_of_which_a_column_is_wrong_is_named(
    tmp_path: Path, run_prepare: Prepare, extension: str, number: int
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for other in range(40):
        _write(folder / f"{other:02d}{extension}", _columns(text=f"text {other}"))
    wrong = folder / f"{number:02d}{extension}"
    for table, message in TABLES.values():
        _write(wrong, table)
        found = _refusal(run_prepare, folder)
        assert wrong.name in found
        with pytest.raises(DataError, match=message):
            raise DataError(found)


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("number", [0, 3, 39])
def test_jsonl_of_which_no_row_has_the_field_is_named(
    tmp_path: Path, run_prepare: Prepare, suffix: str, number: int
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    compress = gzip.compress if suffix else bytes
    for other in range(40):
        rows = json.dumps({"body": 1}) + "\n" + json.dumps({"text": f"text {other}"})  # one row is enough
        (folder / f"{other:02d}.jsonl{suffix}").write_bytes(compress(rows.encode()))
    wrong = folder / f"{number:02d}.jsonl{suffix}"
    for row, message in ROWS.values():
        line = row if isinstance(row, str) else json.dumps(row)
        wrong.write_bytes(compress(f"{line}\n{line}\n".encode()))
        found = _refusal(run_prepare, folder)
        assert wrong.name in found
        with pytest.raises(DataError, match=message):
            raise DataError(found)


@pytest.mark.parametrize(
    ("column", "in_table", "in_rows"),
    [
        ({"other": "x"}, "has no column 'messages' ", "none of its rows has the field 'messages'"),
        ({"messages": "x"}, "holds string, not lists of messages with", "holds lists of messages .*; found text"),
        ({"messages": SHARE_GPT}, "holds list<.*from.*>, not lists of messages with role and content", "found a list"),
        (
            {"messages": [{"role": 3, "content": "q"}]},
            "holds list<.*role: int64.*>, not lists of messages",
            "found a list",
        ),
        ({"messages": MESSAGES}, "has no column 'document'", "none of its rows has the field 'document'"),
        ({"messages": MESSAGES, "document": 3}, "holds int64, not strings", "holds strings; found a number"),
    ],
)
def test_fields_of_conversations(tmp_path: Path, column: dict, in_table: str, in_rows: str) -> None:
    source = Source("chat", [str(tmp_path)], conversations=Conversations(document_field="document"))
    pq.write_table(pa.Table.from_pylist([column]), tmp_path / "a.parquet")
    (tmp_path / "b.jsonl").write_text(json.dumps(column))
    table, rows = find_inputs(source)[0]
    for file, message in ((table, in_table), (rows, in_rows)):
        with pytest.raises(DataError, match=rf"{file.name}.*{message}"):
            inspect_input(file, source, 1000)


def test_field_that_a_message_has_twice_is_refused(tmp_path: Path) -> None:
    """Arrow cannot even make a value of it."""
    pq.write_table(pa.table({"messages": pa.ListArray.from_arrays([0, 1], TWICE)}), tmp_path / "a.parquet")
    source = Source("chat", [str(tmp_path)], conversations=Conversations())
    with pytest.raises(DataError, match=r"column 'messages' .* where 'content' is there twice"):
        inspect_input(find_inputs(source)[0][0], source, 1000)


def test_message_with_a_time_that_python_cannot_hold_is_counted(tmp_path: Path) -> None:
    kind = pa.struct([("role", pa.string()), ("content", pa.string()), ("time", pa.timestamp("us"))])
    rows = [[message | {"time": time} for message in MESSAGES] for time in (0, 2**62)]
    pq.write_table(pa.table({"messages": pa.array(rows, pa.list_(kind))}), tmp_path / "a.parquet")
    source = Source("chat", [str(tmp_path)], conversations=Conversations())
    dropped: Counter[str] = Counter()
    (extent,) = inspect_input(find_inputs(source)[0][0], source, 1000).extents
    assert [document.origin for document in read_documents(extent, source, dropped)] == [{"row": 0}]
    assert dropped == {"value_out_of_range": 1}


@pytest.mark.parametrize(
    ("unread", "name"),
    [
        (pa.array([0, 2**62], pa.timestamp("us")), "system"),
        (pa.StructArray.from_arrays([pa.array([1, 2])] * 2, names=["a", "a"]), "chat_template_kwargs"),
        (pa.array(["{", '{"a": 1, "a": 2}'], pa.json_()), "weight"),
        (pa.array([b"a", b"\xff"]).view(pa.string()), "system_prompt"),
        (pa.array([0, 2**62], pa.timestamp("us")), "documents"),
        (pa.StructArray.from_arrays([pa.array([1, 2])] * 2, names=["a", "a"]), "documents"),
    ],
)
def test_what_a_column_that_is_not_read_holds_costs_no_row(tmp_path: Path, unread: pa.Array, name: str) -> None:
    pq.write_table(pa.table({"messages": pa.array([MESSAGES] * 2), name: unread}), tmp_path / "a.parquet")
    source = Source("chat", [str(tmp_path)], conversations=Conversations())
    (extent,) = inspect_input(find_inputs(source)[0][0], source, 1000).extents
    documents = list(read_documents(extent, source, dropped := Counter()))
    assert len(documents) == 2 and dropped == {} and {document.content.ignored for document in documents} == {(name,)}


def test_wrong_file_is_named_before_a_dataset_is_fetched(tmp_path: Path, run_prepare: Prepare) -> None:
    pq.write_table(_columns(other="x"), tmp_path / "a.parquet")
    sources = [Source("hub", dataset=DatasetSource(str(tmp_path / "none"))), Source("own", [str(tmp_path)])]
    with pytest.raises(DataError, match=r"a.parquet has no column 'text'"):
        run_prepare([], tmp_path / "out", sources=sources)


COMPRESS = {".gz": gzip.compress, ".zst": zstandard.compress, ".bz2": bz2.compress, ".xz": lzma.compress}
PACKED = [f"a{kind}{suffix}" for kind in (".jsonl", ".txt") for suffix in COMPRESS] + ["a.parquet", "a.arrow"]


@pytest.mark.parametrize("name", PACKED)
def test_file_without_a_byte_is_reported_alike_in_every_format(tmp_path: Path, run_prepare: Prepare, name: str) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "good.txt").write_text("text")
    (folder / name).write_bytes(b"")
    with pytest.raises(DataError, match=rf"input .*{name} cannot be read as .*: it is empty \(0 bytes\); fetch or"):
        run_prepare([folder], tmp_path / "out", extensions=[".txt", ".jsonl", ".parquet", ".arrow"])
    assert run_prepare([folder], tmp_path / "out", min_bytes=1).totals["documents"] == 1


@pytest.mark.parametrize("suffix", ["", *COMPRESS])
def test_archive_of_nothing_is_a_file_without_rows(tmp_path: Path, run_prepare: Prepare, suffix: str) -> None:
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(COMPRESS.get(suffix, bytes)(b""))
    with pytest.raises(DataError, match="the 1 input files hold no row and no text"):
        run_prepare([path], tmp_path / "out")


@pytest.mark.parametrize("name", ["a.tar", "a.TAR.gz", "a.tgz", "a.zip"])
@pytest.mark.parametrize("content", [b"", b"some archive\0"])
def test_archive_of_files_is_refused_and_not_read_as_text(
    tmp_path: Path, run_prepare: Prepare, name: str, content: bytes
) -> None:
    (tmp_path / name).write_bytes(content)
    (tmp_path / "good.txt").write_text("text")
    with pytest.raises(DataError, match=rf"{name} is an archive of files; unpack it"):
        run_prepare([tmp_path / "good.txt", tmp_path / name], tmp_path / "out")


@pytest.mark.parametrize("digits", [640, 641, 4300, 4301, 200_000])
def test_integers_of_any_length_parse(tmp_path: Path, run_prepare: Prepare, digits: int) -> None:
    number = "-" + "7" * digits
    (tmp_path / "a.jsonl").write_text(f'{{"n": {number}, "text": "one", "m": [{number}]}}\n{{"text": "two"}}\n')
    manifest = run_prepare([tmp_path / "a.jsonl"], tmp_path / "out")
    assert manifest.totals["documents"] == 2 and manifest.dropped["documents"] == {}
