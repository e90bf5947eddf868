"""Hugging Face datasets: their own Arrow files where they hold the rows, else a spool that goes on where it was."""

import json
import os
import subprocess
import sys
from collections import Counter
from datetime import datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict

from data_prep.hf_datasets import dataset_inputs
from data_prep.inputs import InputFile, find_inputs
from data_prep.readers import Conversation, inspect_input, read_documents
from data_prep.sources import Conversations, DatasetSource, Source
from pipeline.data.shard_format import DataError

TEXTS = [f"document {number} é" * (number % 7 + 1) for number in range(300)]


@pytest.fixture
def jsonl_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for `load_dataset`: 300 rows in three files."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "rows"
    folder.mkdir()
    for number in range(3):
        lines = [json.dumps({"text": text, "n": 1}) for text in TEXTS[100 * number : 100 * number + 100]]
        (folder / f"part{number}.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def _source(path: Path, **dataset: object) -> Source:
    return Source("hf", dataset=DatasetSource(str(path), **dataset))


def _texts(files: list[InputFile], source: Source) -> list[object]:
    extents = [extent for file in files for extent in inspect_input(file, source, 2000).extents]
    return [document.content for extent in extents for document in read_documents(extent, source, Counter())]


def test_saved_dataset_is_read_in_place(tmp_path: Path) -> None:
    Dataset.from_dict({"text": TEXTS, "n": range(300)}).save_to_disk(tmp_path / "saved", num_shards=3)
    source = _source(tmp_path / "saved")
    files = dataset_inputs(source, tmp_path / "spool", 1000)
    assert [(file.name, file.format) for file in files] == [(f"0000{n}.arrow", "arrow") for n in range(3)]
    assert _texts(files, source) == TEXTS and not (tmp_path / "spool").exists()


def test_shuffled_dataset_is_read_in_its_order(tmp_path: Path) -> None:
    shuffled = Dataset.from_dict({"text": TEXTS}).shuffle(seed=3).select(range(100))
    shuffled.save_to_disk(tmp_path / "saved")
    source = _source(tmp_path / "saved")
    assert _texts(dataset_inputs(source, tmp_path / "spool", 1000), source) == shuffled["text"]


def test_split_of_a_saved_dictionary(tmp_path: Path) -> None:
    parts = {"train": Dataset.from_dict({"text": ["a"]}), "test": Dataset.from_dict({"text": ["b", "c"]})}
    DatasetDict(parts).save_to_disk(tmp_path / "saved")
    source = _source(tmp_path / "saved", split="test")
    assert _texts(dataset_inputs(source, tmp_path / "spool", 1000), source) == ["b", "c"]
    with pytest.raises(DataError, match=r"source 'hf': .*saved has no split 'nope'; it has train, test"):
        dataset_inputs(_source(tmp_path / "saved", split="nope"), tmp_path / "spool", 1000)


def test_dataset_of_files_is_read_from_its_arrow_files_and_a_slice_is_spooled(
    jsonl_folder: Path, tmp_path: Path
) -> None:
    whole, part = _source(jsonl_folder), _source(jsonl_folder, split="train[10:30]")
    files = dataset_inputs(whole, tmp_path / "spool", 1000)
    assert {file.format for file in files} == {"arrow"} and _texts(files, whole) == TEXTS
    files = dataset_inputs(part, tmp_path / "spool", 1000)
    assert {file.format for file in files} == {"jsonl"} and _texts(files, part) == TEXTS[10:30]


@pytest.mark.parametrize("spool_bytes", [1, 1000, 1 << 20])
def test_stream_is_spooled_to_files_of_about_the_given_size(
    jsonl_folder: Path, tmp_path: Path, spool_bytes: int
) -> None:
    source = _source(jsonl_folder, streaming=True)
    files = dataset_inputs(source, tmp_path / "spool", spool_bytes)
    assert _texts(files, source) == TEXTS
    assert [file.name for file in files] == [f"{number:05d}.jsonl" for number in range(len(files))]
    assert all(spool_bytes <= file.size < spool_bytes + 200 for file in files[:-1])
    assert json.loads((tmp_path / "spool/hf-00000.jsonl").read_text().split("\n")[0]) == {"text": TEXTS[0]}
    (jsonl_folder / "part0.jsonl").unlink()
    assert dataset_inputs(source, tmp_path / "spool", spool_bytes) == files, "a finished spool needs no dataset"


def test_stopped_stream_goes_on_after_its_last_complete_file(jsonl_folder: Path, tmp_path: Path) -> None:
    source = _source(jsonl_folder, streaming=True)
    whole = {path.name: path.read_bytes() for path in _spool(source, tmp_path / "whole")}
    good = (jsonl_folder / "part2.jsonl").read_bytes()
    (jsonl_folder / "part2.jsonl").write_bytes(b'{"text": "broken\n')
    with pytest.raises(DataError, match=r"source 'hf': dataset .* cannot be read"):
        dataset_inputs(source, tmp_path / "spool", 1000)
    complete = sorted((tmp_path / "spool").glob("*.jsonl"))
    assert 1 < len(complete) < len(whole) - 1
    times = [path.stat().st_mtime_ns for path in complete]
    (jsonl_folder / "part2.jsonl").write_bytes(good)
    assert {path.name: path.read_bytes() for path in _spool(source, tmp_path / "spool")} == whole
    assert [path.stat().st_mtime_ns for path in complete] == times
    assert not list((tmp_path / "spool").glob("*.tmp"))


def _spool(source: Source, folder: Path) -> list[Path]:
    dataset_inputs(source, folder, 1000)
    return sorted(folder.glob("*.jsonl"))


def test_spool_of_other_settings_is_refused(jsonl_folder: Path, tmp_path: Path) -> None:
    dataset_inputs(_source(jsonl_folder, streaming=True), tmp_path / "spool", 1000)
    with pytest.raises(DataError, match=r"hf.json belongs to other settings of source 'hf'"):
        dataset_inputs(_source(jsonl_folder, streaming=True), tmp_path / "spool", 2000)


@pytest.mark.parametrize("streaming", [True, False])
def test_conversations_come_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, streaming: bool) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "rows").mkdir()
    row = {"document": "D", "messages": [{"role": "user", "content": "Q"}], "answers": ["A"], "other": 1}
    row["tools"] = [{"name": "T"}]
    (tmp_path / "rows/x.jsonl").write_text(json.dumps(row))
    settings = Conversations(document_field="document", answers_field="answers")
    source = Source("chat", dataset=DatasetSource(str(tmp_path / "rows"), streaming=streaming), conversations=settings)
    assert _texts(dataset_inputs(source, tmp_path / "spool", 1000), source) == [
        Conversation([{"role": "user", "content": "D\n\nQ"}, {"role": "assistant", "content": "A"}], [{"name": "T"}])
    ]


CHAT = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
PARTS = {"role": "user", "content": [{"type": "text", "text": "in parts"}]}
MIXED = {
    "text": [{"id": None, "text": "first"}, {"id": "x", "text": 4}, {"text": None}, {"text": ["a"]}, {"text": "é 漢"},
             {"text": {"t": "x"}}, {"text": True}, {"text": ""}, {"text": "a\0b"}, {"id": 1, "text": "last"}],
    "messages": [{"messages": CHAT}, {"messages": [PARTS, CHAT[1]]}, {"messages": [CHAT[0], CHAT[1] | {"m": "text"}]},
                 {"messages": [CHAT[0], CHAT[1] | {"m": {"k": 1}}]}, {"messages": None}],
    "whole": [{"messages": CHAT}, {"messages": "none"}, {"messages": {"a": 1}}],
}  # fmt: skip


@pytest.mark.parametrize(("rows", "num_read"), [("text", 3), ("messages", 4), ("whole", 1)])
def test_columns_that_datasets_infers_as_json_are_read_as_streamed_rows_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: str, num_read: int, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows/x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in MIXED[rows]))
    found = {}
    for streaming in (True, False):
        conversations = None if rows == "text" else Conversations()
        dataset = DatasetSource(str(tmp_path / "rows"), streaming=streaming)
        source = Source("hf", dataset=dataset, conversations=conversations)
        files = dataset_inputs(source, tmp_path / f"spool{streaming}", 100)
        extents = [extent for file in files for extent in inspect_input(file, source, 1).extents]
        dropped: Counter[str] = Counter()
        found[streaming] = [d.content for extent in extents for d in read_documents(extent, source, dropped)], dropped
        assert {file.format for file in files} == {"jsonl" if streaming else "arrow"}
    assert found[True] == found[False]
    assert len(found[False][0]) == num_read and sum(found[False][1].values()) == len(MIXED[rows]) - num_read
    assert ("mixes text with other values" in capsys.readouterr().err) == (rows == "text")
    (arrow,) = files  # as a file of its own
    source = Source("own", [arrow.url.removeprefix("file://")], conversations=source.conversations)
    (own,) = find_inputs(source)[0]
    extents = inspect_input(own, source, 1000).extents
    assert [d.content for extent in extents for d in read_documents(extent, source, Counter())] == found[False][0]


def test_json_columns_of_which_no_row_holds_text_or_of_another_type_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    table = pa.table({"text": pa.array(["1", "{", None, '{"a": 1, "a": 2}'], pa.json_())})
    pq.write_table(table, tmp_path / "a.parquet")
    source = Source("own", [str(tmp_path / "a.parquet")])
    with pytest.raises(DataError, match=r"a.parquet: in none of its rows the field 'text' .*; found a number"):
        inspect_input(find_inputs(source)[0][0], source, 1000)
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows/x.jsonl").write_text('{"text": 1}\n')
    for streaming in (True, False):
        with pytest.raises(DataError, match=r"source 'hf': dataset .*rows: column 'text' .* holds int64, not strings"):
            dataset_inputs(_source(tmp_path / "rows", streaming=streaming), tmp_path / "spool", 1000)


@pytest.mark.parametrize("streaming", [True, False])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"split": "nope"}, "nope"),
        ({"name": "nope"}, "'nope' not found"),
        ({"path": "/none/such"}, "/none/such"),
    ],
)
def test_what_is_not_there_is_named(
    jsonl_folder: Path, tmp_path: Path, changes: dict, message: str, streaming: bool
) -> None:
    source = _source(**({"path": jsonl_folder, "streaming": streaming} | changes))
    with pytest.raises(DataError, match=f"source 'hf': dataset .*{message}") as caught:
        dataset_inputs(source, tmp_path / "spool", 1000)
    assert "\n" not in str(caught.value)


def test_what_json_cannot_hold_in_a_column_that_is_not_read_ends_no_stream(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    when = datetime(2024, 1, 1)
    messages = [{"role": "user", "content": "q", "time": when}, {"role": "assistant", "content": "a", "time": when}]
    rows = [
        {"messages": messages, "system": when, "documents": [{"since": when}], "tools": None},
        {"messages": messages, "system": None, "documents": None, "tools": [{"since": when}]},
    ]
    Dataset.from_list(rows).save_to_disk(tmp_path / "saved")
    source = Source("hf", dataset=DatasetSource(str(tmp_path / "saved")), conversations=Conversations())
    found = []
    for kind in ("arrow", "jsonl"):
        files = dataset_inputs(source, tmp_path / "spool", 10_000)
        assert [file.format for file in files] == [kind]
        monkeypatch.setattr("data_prep.hf_datasets._arrow_files", lambda *_: [])  # as of a slice
        dropped: Counter[str] = Counter()
        extents = [extent for file in files for extent in inspect_input(file, source, 2000).extents]
        contents = [document.content for extent in extents for document in read_documents(extent, source, dropped)]
        found.append(([(content.messages, content.ignored) for content in contents], dropped))
    ((_, ignored),), dropped = found[0]
    assert ignored == ("system", "documents", "user.time", "assistant.time") and dropped == {"malformed_tools": 1}
    assert found[0] == found[1]


@pytest.mark.parametrize("streaming", [True, False])
def test_missing_column_is_named(jsonl_folder: Path, tmp_path: Path, streaming: bool) -> None:
    source = Source("hf", dataset=DatasetSource(str(jsonl_folder), streaming=streaming), text_field="body")
    with pytest.raises(DataError, match=r"source 'hf': dataset .*rows has no column 'body' .*; its columns: text, n"):
        dataset_inputs(source, tmp_path / "spool", 1000)


@pytest.mark.parametrize("streaming", [True, False])
def test_what_datasets_passes_over_in_silence_is_refused(jsonl_folder: Path, tmp_path: Path, streaming: bool) -> None:
    (jsonl_folder / "part3.jsonl.gz").write_bytes(b"")
    with pytest.raises(DataError, match=r"source 'hf': .*part3.jsonl.gz is empty \(0 bytes\)"):
        dataset_inputs(_source(jsonl_folder, streaming=streaming), tmp_path / "spool", 1000)
    (tmp_path / "csv").mkdir()
    (tmp_path / "csv/a.csv").write_text("text,text\na,b\n")
    with pytest.raises(DataError, match=r"source 'hf': dataset .*csv has 2 columns named 'text' \(--text_field\)"):
        dataset_inputs(_source(tmp_path / "csv", streaming=streaming), tmp_path / "spool", 1000)
    (tmp_path / "ids").mkdir()
    (tmp_path / "ids/a.jsonl").write_text('{"text": "a", "id": "x"}\n{"text": "b", "id": %s}\n' % ("9" * 30))
    with pytest.raises(DataError, match=r"cannot be read \(ValueError: .*\); `inputs` reads JSONL"):
        dataset_inputs(_source(tmp_path / "ids", streaming=streaming), tmp_path / "spool", 1000)
    own = Source("own", [str(tmp_path / "ids")])
    assert _texts(find_inputs(own)[0], own) == ["a", "b"]


def test_dataset_without_rows_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    Dataset.from_dict({"text": []}).save_to_disk(tmp_path / "saved", num_shards=1)
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows/x.csv").write_text("text,n\n")
    for source in (_source(tmp_path / "saved"), _source(tmp_path / "rows", streaming=True)):
        with pytest.raises(DataError, match=r"source 'hf': dataset .* has no rows"):
            dataset_inputs(source, tmp_path / "spool", 1000)


@pytest.mark.slow
def test_offline_machine_is_told_at_once(tmp_path: Path) -> None:
    code = (
        "from pathlib import Path; from data_prep.hf_datasets import *; from data_prep.sources import *\n"
        f"dataset_inputs(Source('hf', dataset=DatasetSource('org/name')), Path({str(tmp_path)!r}), 1000)"
    )
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    last = done.stderr.strip().splitlines()[-1]
    assert "DataError: source 'hf': dataset org/name cannot be read (ConnectionError: " in last
    assert "OfflineModeIsEnabled" in last
