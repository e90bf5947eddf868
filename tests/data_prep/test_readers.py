"""Documents out of every format; bad ones counted by reason, unreadable files refused by name."""

import bz2
import gzip
import json
import lzma
import os
import pickle
import tracemalloc
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from time import sleep

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_prep.inputs import InputFile, find_inputs
from data_prep.readers import Conversation, Extent, InvalidDocument, RawDocument, inspect_input, read_documents
from data_prep.readers.stored import CHUNK_BYTES, read_chunks
from data_prep.sources import Conversations, Source
from pipeline.data.shard_format import DataError

TEXTS = ["first\ndocument", "zweites: äöü 漢字", "x" * 3_000_000, "last"]
COMPRESS = {
    "": lambda raw: raw,
    ".gz": gzip.compress,
    ".zst": zstandard.ZstdCompressor().compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
}
SOURCE = Source("web")
TWO_TEXTS = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["text", "text"])
MANY = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def _file(path: Path) -> InputFile:
    return find_inputs(Source("web", [str(path)]))[0][0]


def _read(
    path: Path, source: Source = SOURCE, extents: list[Extent] | None = None
) -> tuple[list[RawDocument], dict[str, int]]:
    """All documents, the text of streamed ones joined, and what was dropped."""
    dropped: Counter[str] = Counter()
    whole = [Extent(_file(path), 0, None, 0, 0)]
    documents = [d for extent in extents or whole for d in read_documents(extent, source, dropped)]
    return documents, dict(dropped)


def _contents(path: Path) -> list[str]:
    return [document.content for document in _read(path)[0]]


def _jsonl(texts: list[str]) -> bytes:
    return "".join(json.dumps({"text": t, "n": 1}, ensure_ascii=False) + "\n" for t in texts).encode()


def _write_arrow(path: Path, table: pa.Table, rows: int, stream: bool = True) -> None:
    new = pa.ipc.new_stream if stream else pa.ipc.new_file
    with new(path, table.schema) as writer:
        writer.write_table(table, max_chunksize=rows)


@pytest.mark.parametrize("suffix", COMPRESS)
def test_jsonl_plain_and_compressed(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"d.jsonl{suffix}"
    path.write_bytes(COMPRESS[suffix](_jsonl(TEXTS)))
    documents, dropped = _read(path)
    assert [d.content for d in documents] == TEXTS and dropped == {}
    assert [d.id for d in documents] == [f"web/{path.name}:{row}" for row in range(4)]
    assert documents[1].origin == {"row": 1, "bytes": len(TEXTS[1].encode())}


@pytest.mark.parametrize("suffix", [".gz", ".zst", ".bz2", ".xz"])
def test_every_member_of_a_concatenated_archive_is_read(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"d.jsonl{suffix}"
    path.write_bytes(COMPRESS[suffix](_jsonl(TEXTS[:2])) + COMPRESS[suffix](_jsonl(TEXTS[2:])))
    assert _contents(path) == TEXTS


@pytest.mark.parametrize("suffix", [".gz", ".zst", ".bz2", ".xz"])
@pytest.mark.parametrize("kind", ["jsonl", "txt"])
def test_truncated_archive_is_an_error_not_a_short_input(tmp_path: Path, suffix: str, kind: str) -> None:
    path = tmp_path / f"d.{kind}{suffix}"
    raw = COMPRESS[suffix]("".join(f'{{"text": "{i * 7919}"}}\n' for i in range(20000)).encode())
    path.write_bytes(raw[:-20])
    with pytest.raises(DataError, match=f"d.{kind}{suffix} cannot be read as .*-compressed"):
        _read(path)


@pytest.mark.parametrize("suffix", [".gz", ".zst", ".bz2", ".xz"])
def test_damage_at_the_start_of_a_later_member_is_no_end_of_the_file(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"d.jsonl{suffix}"
    first, second = (COMPRESS[suffix](_jsonl([text] * 100)) for text in "ab")
    for number in range(3):  # the next byte is an option
        damaged = bytearray(second)
        damaged[number] ^= 1
        for rest in (bytes(damaged), second[: number + 1]):
            path.write_bytes(first + rest)
            with pytest.raises(DataError, match=rf"d.jsonl{suffix} cannot be read as .*-compressed jsonl"):
                _read(path)


def test_zeros_between_xz_streams_count_as_padding_in_fours(tmp_path: Path) -> None:
    path, part = tmp_path / "d.jsonl.xz", lzma.compress(_jsonl(["a"]))
    for number in (4, 8, CHUNK_BYTES + 4):
        path.write_bytes(part + bytes(number) + part + bytes(number))
        assert _contents(path) == ["a", "a"]
    for raw in (part + bytes(3) + part, part + bytes(5), bytes(4) + part):
        path.write_bytes(raw)
        with pytest.raises(DataError, match="cannot be read as xz-compressed"):
            _read(path)


@pytest.mark.parametrize("suffix", [".bz2", ".xz"])
def test_well_compressed_member_is_not_held_in_memory(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"d.txt{suffix}"
    path.write_bytes(COMPRESS[suffix](bytes(64 << 20)))
    tracemalloc.start()
    try:
        assert sum(map(len, read_chunks(_file(path)))) == 64 << 20
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()


def test_parquet_rows_in_order_over_many_groups(tmp_path: Path) -> None:
    path = tmp_path / "d.parquet"
    texts = [f"text {i}" for i in range(1000)]
    pq.write_table(pa.table({"n": range(1000), "text": texts}), path, row_group_size=70)
    documents, dropped = _read(path)
    assert [d.content for d in documents] == texts and dropped == {}
    assert documents[999].id == "web/d.parquet:999" and documents[999].origin == {"row": 999, "bytes": 8}


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
@pytest.mark.parametrize("name", ["d.parquet", "stream.arrow", "file.arrow"])
def test_every_kind_of_string_column_in_every_table(tmp_path: Path, name: str, kind: pa.DataType) -> None:
    path = tmp_path / name
    table = pa.table({"n": [1, 2, 3], "text": pa.array(["a", "b", "a"]).cast(kind)})
    if name == "d.parquet":
        pq.write_table(table, path)
    else:
        _write_arrow(path, table, 2, stream=name == "stream.arrow")
    extents = inspect_input(_file(path), SOURCE, 1).extents
    assert [(d.id, d.content) for d in _read(path, extents=extents)[0]] == [
        (f"web/{name}:0", "a"),
        (f"web/{name}:1", "b"),
        (f"web/{name}:2", "a"),
    ]


def test_text_file_is_one_document_with_its_newlines_and_without_its_bom(tmp_path: Path) -> None:
    path = tmp_path / "a.py"
    path.write_bytes(b"\xef\xbb\xbfone\r\ntwo\n")
    assert _read(path) == ([RawDocument("web/a.py", {"bytes": 9}, "one\r\ntwo\n")], {})


@pytest.mark.parametrize(
    ("name", "raw", "reason"),
    [
        ("a.txt", b"ok \xff\xfe no", "invalid_utf8"),
        ("a.txt", b"", "empty"),
        ("a.txt", b" \n\t ", "empty"),
        ("a.txt", b"one\0two", "nul_bytes"),
        ("a.jsonl", b'{"text": "half}', "malformed_json"),
        ("a.jsonl", b"[" * 100_000, "malformed_json"),
        ("a.jsonl", b'{"text": ' + b"1" * 5000 + b"}", "missing_text_field"),
        ("a.jsonl", b'{"text": "a", "text": "b"}', "repeated_key"),
        ("a.jsonl", b'{"text": "a", "more": [{"k": 1, "k": 1}]}', "repeated_key"),
        ("a.jsonl", b'{"text": "\xff"}', "invalid_utf8"),
        ("a.jsonl", b'{"text": "\\ud800"}', "invalid_utf8"),
        ("a.jsonl", b'{"text": "a\\u0000b"}', "nul_bytes"),
        ("a.jsonl", b'{"text": "a\0b"}', "malformed_json"),
        ("a.jsonl", b'{"body": "x"}', "missing_text_field"),
        ("a.jsonl", b'{"text": null}', "missing_text_field"),
        ("a.jsonl", b'{"text": 3}', "missing_text_field"),
        ("a.jsonl", b'["text"]', "missing_text_field"),
        ("a.jsonl", b'{"text": ""}', "empty"),
        ("a.jsonl", b" \r", "blank_line"),
    ],
)
def test_bad_document_is_counted_and_its_neighbours_are_kept(
    tmp_path: Path, name: str, raw: bytes, reason: str
) -> None:
    path = tmp_path / name
    is_jsonl = name.endswith("jsonl")
    path.write_bytes(b'{"text": "before"}\n' + raw + b'\n{"text": "after"}\n' if is_jsonl else raw)
    documents, dropped = _read(path)
    assert dropped == {reason: 1}
    assert [(d.id, d.content) for d in documents] == (
        [("web/a.jsonl:0", "before"), ("web/a.jsonl:2", "after")] if is_jsonl else []
    )


@pytest.mark.parametrize("name", ["d.parquet", "stream.arrow", "file.arrow"])
def test_nulls_and_bad_strings_of_a_table_are_counted(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    offsets = pa.py_buffer(b"".join(n.to_bytes(4, "little") for n in (0, 2, 3, 3)))
    strings = pa.StringArray.from_buffers(3, offsets, pa.py_buffer(b"ok\xff"))
    table = pa.table({"text": pa.concat_arrays([strings, pa.array([None, "a\0b", "end"])])})
    if name == "d.parquet":
        pq.write_table(table, path)
    else:
        _write_arrow(path, table, 100, stream=name == "stream.arrow")
    documents, dropped = _read(path)
    assert dropped == {"invalid_utf8": 1, "empty": 1, "missing_text_field": 1, "nul_bytes": 1}
    assert [(d.id, d.content) for d in documents] == [(f"web/{name}:0", "ok"), (f"web/{name}:5", "end")]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.parquet", b"no parquet", "a.parquet cannot be read as parquet"),
        ("a.arrow", b"no arrow at all", "a.arrow cannot be read as arrow"),
        ("e.arrow", b"", "e.arrow cannot be read as arrow"),
        ("a.jsonl.gz", b"no gzip", "a.jsonl.gz cannot be read as gzip-compressed jsonl"),
        ("a.txt.zst", b"no zstd", "a.txt.zst cannot be read as zstd-compressed text"),
        ("a.json", b' [{"text": "x"},\n{"text": "y"}]', "a.json holds one JSON array"),
        ("b.parquet", {"body": ["x"]}, r"b.parquet has no column 'text' \(--text_field\); its columns: body"),
        ("b.arrow", {"body": ["x"]}, r"b.arrow has no column 'text' \(--text_field\); its columns: body"),
        ("d.parquet", TWO_TEXTS, r"d.parquet has 2 columns named 'text' \(--text_field\); rename all but one"),
        ("d.arrow", TWO_TEXTS, r"d.arrow has 2 columns named 'text' \(--text_field\); rename all but one"),
        ("c.parquet", {"text": [1]}, "column 'text' .* holds int64, not strings"),
    ],
)
def test_unusable_file_is_found_before_the_work(
    tmp_path: Path, name: str, content: bytes | dict | pa.Table, message: str
) -> None:
    path = tmp_path / name
    table = pa.table(content) if isinstance(content, dict) else content
    if isinstance(table, bytes):
        path.write_bytes(table)
    elif name.endswith("parquet"):
        pq.write_table(table, path)
    else:
        _write_arrow(path, table, 1)
    with pytest.raises(DataError, match=message) as caught:
        inspect_input(_file(path), SOURCE, 1000)
    assert "\n" not in str(caught.value)


def test_file_that_the_system_does_not_let_read_is_refused() -> None:
    file = _file(Path("/proc/self/mem"))  # a regular file; its first page cannot be read, by root neither
    with pytest.raises(DataError, match="/proc/self/mem cannot be read as text"):
        inspect_input(file, SOURCE, 1000)


@pytest.mark.parametrize("stream", [True, False])
def test_truncated_or_damaged_arrow_is_refused(tmp_path: Path, stream: bool) -> None:
    path = tmp_path / "d.arrow"
    _write_arrow(path, pa.table({"text": [f"text {n}" * 20 for n in range(1000)]}), 100, stream)
    raw = path.read_bytes()
    path.write_bytes(raw[: len(raw) // 2])
    with pytest.raises(DataError, match=r"d.arrow cannot be read as arrow"):
        inspect_input(_file(path), SOURCE, 1000)
    offsets = raw.index((120).to_bytes(4, "little") + (240).to_bytes(4, "little"))
    path.write_bytes(raw[:offsets] + b"\xff\xff\xff\x7f" + raw[offsets + 4 :])
    with pytest.raises(DataError, match=r"d.arrow cannot be read as arrow"):
        _read(path)


def _write_texts(path: Path, texts: list[str]) -> None:
    if path.suffix == ".parquet":
        pq.write_table(pa.table({"text": texts}), path)
    elif path.suffix == ".arrow":
        _write_arrow(path, pa.table({"text": texts}), 1)
    else:
        path.write_bytes(COMPRESS[path.suffix if path.suffix in COMPRESS else ""](_jsonl(texts)))


@pytest.mark.parametrize("name", ["d.txt", "d.jsonl", "d.jsonl.gz", "d.parquet", "d.arrow"])
def test_file_that_changed_since_it_was_inspected_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    _write_texts(path, ["a", "b"])
    inspected = path.stat()
    extents = inspect_input(_file(path), SOURCE, 1 << 20).extents
    changed = rf"input file://{path} changed while it was being read; run again"
    reading = read_documents(extents[0], SOURCE, Counter())
    assert next(reading)
    os.utime(path, ns=(inspected.st_atime_ns, inspected.st_mtime_ns + 1))
    with pytest.raises(DataError, match=changed):
        list(reading)
    _write_texts(path, ["c", "d"])  # of the same size
    os.utime(path, ns=(inspected.st_atime_ns, inspected.st_mtime_ns + 1))
    with pytest.raises(DataError, match=changed):
        list(read_documents(extents[0], SOURCE, Counter()))
    path.unlink()
    with pytest.raises(DataError, match="cannot be read as"):
        list(read_documents(extents[0], SOURCE, Counter()))


def test_file_that_changes_while_it_is_inspected_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_bytes(_jsonl(["a"]))
    with ThreadPoolExecutor(1) as threads:
        done = threads.submit(lambda: [os.utime(path, ns=(1, 1000 * n)) or sleep(0.001) for n in range(500)])
        with pytest.raises(DataError, match="changed while it was being read"):
            while not done.done():
                inspect_input(_file(path), SOURCE, 1)


def test_remote_file_that_changed_is_refused() -> None:
    files = MemoryFileSystem()
    files.pipe("/changing/d.jsonl", _jsonl(["a"]))
    (file,) = find_inputs(Source("web", ["memory://changing/d.jsonl"]))[0]
    extents = inspect_input(file, SOURCE, 1).extents
    assert [d.content for d in read_documents(extents[0], SOURCE, Counter())] == ["a"]
    files.pipe("/changing/d.jsonl", _jsonl(["b"]))
    with pytest.raises(DataError, match=r"memory:/+changing/d\.jsonl changed while it was being read"):
        list(read_documents(extents[0], SOURCE, Counter()))


def test_extent_beyond_the_end_of_the_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_bytes(_jsonl(["a", "b", "c"]))
    extents = [replace(extent, version=None) for extent in inspect_input(_file(path), SOURCE, 1).extents]
    path.write_bytes(_jsonl(["a", "b"]))
    with pytest.raises(DataError, match="shorter than when it was first read"):
        _read(path, extents=extents)


LINES = st.one_of(
    st.builds(lambda t: json.dumps({"text": t}).encode(), st.text(max_size=30)),
    st.sampled_from(
        [b"", b" ", b"\r", b"{", b"\xff", b"\xef\xbb\xbf", b'\xef\xbb\xbf{"text": "bom"}', b'{"text": "x"}\r']
    ),
    st.binary(max_size=20),
)


@MANY
@given(lines=st.lists(LINES, max_size=30), newline_at_end=st.booleans(), unit_bytes=st.integers(1, 200))
def test_jsonl_extents_hold_the_documents_of_the_whole_file(
    tmp_path: Path, lines: list[bytes], newline_at_end: bool, unit_bytes: int
) -> None:
    path = tmp_path / "d.jsonl"
    raw = b"\n".join(lines) + b"\n" * newline_at_end
    path.write_bytes(raw)
    file = _file(path)
    inspection = inspect_input(file, SOURCE, unit_bytes)
    extents = inspection.extents
    assert inspection.sha256 == sha256(raw).hexdigest() and pickle.loads(pickle.dumps(inspection)) == inspection
    assert _read(path, extents=extents) == _read(path) if extents else raw == b""
    bounds = [0, *(extent.end for extent in extents)]
    assert bounds == [*(extent.start for extent in extents), len(raw)]
    for extent in extents:
        part = raw[extent.start : extent.end]
        assert extent.first_row == raw[: extent.start].count(b"\n") and extent.size == len(part)
        assert len(part) <= unit_bytes or part.rstrip(b"\n").count(b"\n") == 0, "only a single line may be longer"
        assert part.endswith(b"\n") or extent.end == len(raw)
    for extent, following in pairwise(extents):
        line = raw[following.start :].split(b"\n", 1)[0] + b"\n"
        assert extent.size + len(line) > unit_bytes, "a line that fits is not left to the next extent"


def test_jsonl_extents_over_many_chunks(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_bytes(_jsonl([*TEXTS, *(f"line {n}" * (n % 50) for n in range(20_000)), "y" * 2_500_000, "end"]))
    extents = inspect_input(_file(path), SOURCE, 300_000).extents
    assert len(extents) > 20 and _read(path, extents=extents) == _read(path)
    assert max(extent.size for extent in extents if extent.first_row not in (2, 20_004)) <= 300_000


@MANY
@given(
    rows=st.lists(st.text(max_size=20), min_size=1, max_size=60),
    group=st.integers(1, 20),
    unit_bytes=st.integers(1, 2000),
    name=st.sampled_from(["d.parquet", "stream.arrow", "file.arrow"]),
)
def test_table_extents_hold_the_documents_of_the_whole_file(
    tmp_path: Path, rows: list[str], group: int, unit_bytes: int, name: str
) -> None:
    path = tmp_path / name
    table = pa.table({"text": rows, "n": range(len(rows))})
    if name == "d.parquet":
        pq.write_table(table, path, row_group_size=group)
    else:
        _write_arrow(path, table, group, stream=name == "stream.arrow")
    inspection = inspect_input(_file(path), SOURCE, unit_bytes)
    assert inspection.sha256 == sha256(path.read_bytes()).hexdigest()
    assert _read(path, extents=inspection.extents) == _read(path)
    assert all(extent.first_row == extent.start * group for extent in inspection.extents)
    assert all(extent.size <= unit_bytes or extent.end - extent.start == 1 for extent in inspection.extents)


def test_files_without_a_row_have_no_extents(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"")
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "b.parquet")
    _write_arrow(tmp_path / "c.arrow", pa.table({"text": pa.array([], pa.string())}), 1)
    for name in ("a.jsonl", "b.parquet", "c.arrow"):
        assert inspect_input(_file(tmp_path / name), SOURCE, 10).extents == []


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_long_text_file_comes_in_chunks_and_small_memory(tmp_path: Path, suffix: str) -> None:
    line = "漢字 and äöü 🙂\n" * 5000
    path = tmp_path / f"long.txt{suffix}"
    text = "\ufeff" + line * 200
    path.write_bytes(COMPRESS[suffix](text.encode()))
    (document,), dropped = _read(path)
    assert dropped == {} and document.origin == {}
    digest, longest = sha256(), 0
    tracemalloc.start()
    for chunk in document.content:
        digest.update(chunk.encode())
        longest = max(longest, len(chunk))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert digest.digest() == sha256(text[1:].encode()).digest() and longest <= 1 << 20
    assert len(text.encode()) > 17 << 20 > 12 << 20 > peak


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"x" * (5 << 20) + b"\xff", "invalid_utf8"),
        (b"x" * (5 << 20) + "é".encode()[:1], "invalid_utf8"),
        (b"x" * (5 << 20) + b"\0", "nul_bytes"),
        (b" " * (5 << 20), "empty"),
    ],
)
def test_bad_end_of_a_long_text_is_told_by_its_iterator(tmp_path: Path, raw: bytes, reason: str) -> None:
    path = tmp_path / "long.txt"
    path.write_bytes(raw)
    (document,), _ = _read(path)
    with pytest.raises(InvalidDocument) as caught:
        list(document.content)
    assert caught.value.reason == reason


def test_long_archive_that_is_truncated_is_an_error_of_its_iterator(tmp_path: Path) -> None:
    path = tmp_path / "long.txt.gz"
    path.write_bytes(gzip.compress(bytes(range(32, 127)) * 80_000)[:-9])
    (document,), _ = _read(path)
    with pytest.raises(DataError, match=r"long.txt.gz cannot be read"):
        list(document.content)


CHAT = Source("chat", conversations=Conversations(answers_field="answers", document_field="document"))


def test_chatqa2_rows_become_messages_with_document_and_answer(tmp_path: Path) -> None:
    row = {
        "document": "A {content} of {document}.",
        "messages": [{"role": "user", "content": [{"type": "text", "text": "Wh"}, {"type": "text", "text": "o?"}]}],
        "answers": ["She.", "He."],
    }
    messages = [
        {"role": "user", "content": "A {content} of {document}.\n\nWho?"},
        {"role": "assistant", "content": "She."},
    ]
    (tmp_path / "d.jsonl").write_text(json.dumps(row))
    documents, dropped = _read(tmp_path / "d.jsonl", CHAT)
    assert documents == [RawDocument("web/d.jsonl:0", {"row": 0}, Conversation(messages))] and dropped == {}
    plain = row | {"messages": [{"role": "user", "content": "Who?", "name": None}]}
    pq.write_table(pa.Table.from_pylist([plain]), tmp_path / "d.parquet")
    extents = inspect_input(_file(tmp_path / "d.parquet"), CHAT, 1000).extents
    assert [d.content.messages for d in _read(tmp_path / "d.parquet", CHAT, extents)[0]] == [messages]


USER, ANSWER = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ([USER], "malformed_messages"),
        ({"messages": None, "document": "d"}, "malformed_messages"),
        ({"messages": [], "document": "d"}, "malformed_messages"),
        ({"messages": ["hi"], "document": "d"}, "malformed_messages"),
        ({"messages": [{"from": "human", "value": "x"}], "document": "d"}, "malformed_messages"),
        ({"messages": [{"role": "user", "content": None}], "document": "d"}, "malformed_messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}], "document": "d"}, "malformed_messages"),
        ({"messages": [ANSWER], "document": "d"}, "malformed_messages"),
        ({"messages": [USER | {"role": "<|im_end|>"}], "document": "d"}, "unknown_role"),
        ({"messages": [USER, ANSWER | {"tool_calls": [{}]}], "document": "d"}, "unsupported_message_field"),
        ({"messages": [USER, ANSWER | {"content": " \n"}], "document": "d"}, "empty_assistant_turn"),
        ({"messages": [USER], "document": "d"}, "missing_answer"),
        ({"messages": [USER], "document": "d", "answers": []}, "missing_answer"),
        ({"messages": [USER], "document": "d", "answers": [" "]}, "missing_answer"),
        ({"messages": [USER, ANSWER]}, "missing_document"),
        ({"messages": [USER, ANSWER], "document": "  "}, "missing_document"),
        ({"messages": [USER, ANSWER], "document": "a\0"}, "nul_bytes"),
        ({"messages": [USER, ANSWER | {"content": "\ud800"}], "document": "d"}, "invalid_utf8"),
    ],
)
def test_unusable_conversation_is_counted(tmp_path: Path, row: object, reason: str) -> None:
    good = json.dumps({"messages": [USER, ANSWER], "document": "d", "answers": []})
    (tmp_path / "d.jsonl").write_text(f"{good}\n{json.dumps(row)}\n{good}\n")
    documents, dropped = _read(tmp_path / "d.jsonl", CHAT)
    assert [d.origin for d in documents] == [{"row": 0}, {"row": 2}] and dropped == {reason: 1}


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"document": ["d"], "answers": [["a"]]}, r"no column 'messages' \(messages_field\)"),
        ({"messages": ["x"], "document": ["d"], "answers": ["a"]}, "holds string, not lists of messages"),
        ({"messages": [[USER]], "answers": ["a"]}, r"no column 'document' \(document_field\)"),
        ({"messages": [[USER]], "document": ["d"], "answers": [3]}, r"holds int64, not \(lists of\) strings"),
    ],
)
def test_columns_of_conversations_are_checked_before_the_work(tmp_path: Path, columns: dict, message: str) -> None:
    pq.write_table(pa.table(columns), tmp_path / "d.parquet")
    with pytest.raises(DataError, match=message):
        inspect_input(_file(tmp_path / "d.parquet"), CHAT, 1000)


def test_text_files_hold_no_conversations(tmp_path: Path) -> None:
    (tmp_path / "d.txt").write_text("x")
    with pytest.raises(DataError, match="source 'chat' holds conversations, which are read from JSONL"):
        inspect_input(_file(tmp_path / "d.txt"), CHAT, 1000)
