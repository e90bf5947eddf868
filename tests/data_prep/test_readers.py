"""Documents out of every format; bad ones counted by reason, unreadable files refused by name."""

import bz2
import gzip
import json
import lzma
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from data_prep.inputs import InputFile, ReadingSpec, find_inputs
from data_prep.readers import RawDocument, fingerprint_input, read_documents
from pipeline.data.shard_format import DataError

TEXTS = ["first\ndocument", "zweites: äöü 漢字", "x" * 3_000_000, "last"]
COMPRESS = {
    "": lambda raw: raw,
    ".gz": gzip.compress,
    ".zst": zstandard.ZstdCompressor().compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
}


def _file(path: Path) -> InputFile:
    return find_inputs([str(path)], ReadingSpec("text", (), (), 0))[0][0]


def _read(path: Path) -> tuple[list[RawDocument], dict[str, int]]:
    dropped: Counter[str] = Counter()
    documents = list(read_documents(_file(path), "text", dropped))
    return documents, dict(dropped)


def _jsonl(texts: list[str]) -> bytes:
    return "".join(json.dumps({"text": t, "n": 1}, ensure_ascii=False) + "\n" for t in texts).encode()


@pytest.mark.parametrize("suffix", COMPRESS)
def test_jsonl_plain_and_compressed(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"d.jsonl{suffix}"
    path.write_bytes(COMPRESS[suffix](_jsonl(TEXTS)))
    documents, dropped = _read(path)
    assert [d.text for d in documents] == TEXTS and dropped == {}
    assert [d.id for d in documents] == [f"{path.name}:{row}" for row in range(4)]
    assert documents[1].origin == {"row": 1, "bytes": len(TEXTS[1].encode())}


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_every_member_of_a_concatenated_archive_is_read(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"d.jsonl{suffix}"
    path.write_bytes(COMPRESS[suffix](_jsonl(TEXTS[:2])) + COMPRESS[suffix](_jsonl(TEXTS[2:])))
    assert [d.text for d in _read(path)[0]] == TEXTS


@pytest.mark.parametrize("suffix", [".gz", ".zst", ".bz2", ".xz"])
def test_truncated_archive_is_an_error_not_a_short_input(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"d.jsonl{suffix}"
    raw = COMPRESS[suffix]("".join(f'{{"text": "{i * 7919}"}}\n' for i in range(20000)).encode())
    path.write_bytes(raw[:-20])
    with pytest.raises(DataError, match=f"d.jsonl{suffix} cannot be read as .*-compressed jsonl"):
        _read(path)


def test_parquet_rows_in_order_over_many_groups(tmp_path: Path) -> None:
    path = tmp_path / "d.parquet"
    texts = [f"text {i}" for i in range(1000)]
    pq.write_table(pa.table({"n": range(1000), "text": texts}), path, row_group_size=70)
    documents, dropped = _read(path)
    assert [d.text for d in documents] == texts and dropped == {}
    assert documents[999].id == "d.parquet:999" and documents[999].origin == {"row": 999, "bytes": 8}


def test_text_file_is_one_document_with_its_newlines_and_without_its_bom(tmp_path: Path) -> None:
    path = tmp_path / "a.py"
    path.write_bytes(b"\xef\xbb\xbfone\r\ntwo\n")
    assert _read(path) == ([RawDocument("a.py", {"bytes": 9}, "one\r\ntwo\n")], {})


@pytest.mark.parametrize(
    ("name", "raw", "reason"),
    [
        ("a.txt", b"ok \xff\xfe no", "invalid_utf8"),
        ("a.txt", b"", "empty"),
        ("a.txt", b" \n\t ", "empty"),
        ("a.jsonl", b'{"text": "half}', "malformed_json"),
        ("a.jsonl", b"[" * 100_000, "malformed_json"),
        ("a.jsonl", b'{"text": "\xff"}', "invalid_utf8"),
        ("a.jsonl", b'{"text": "\\ud800"}', "invalid_utf8"),
        ("a.jsonl", b'{"body": "x"}', "missing_text_field"),
        ("a.jsonl", b'{"text": null}', "missing_text_field"),
        ("a.jsonl", b'{"text": 3}', "missing_text_field"),
        ("a.jsonl", b'["text"]', "missing_text_field"),
        ("a.jsonl", b'{"text": ""}', "empty"),
    ],
)
def test_bad_document_is_counted_and_its_neighbours_are_kept(
    tmp_path: Path, name: str, raw: bytes, reason: str
) -> None:
    path = tmp_path / name
    is_jsonl = name.endswith("jsonl")
    path.write_bytes(b'{"text": "before"}\n\n' + raw + b'\n{"text": "after"}' if is_jsonl else raw)
    documents, dropped = _read(path)
    assert dropped == {reason: 1}
    assert [(d.id, d.text) for d in documents] == (
        [("a.jsonl:0", "before"), ("a.jsonl:3", "after")] if is_jsonl else []
    )


def test_parquet_nulls_and_bad_strings_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "d.parquet"
    offsets = pa.py_buffer(b"".join(n.to_bytes(4, "little") for n in (0, 2, 3, 3)))
    strings = pa.StringArray.from_buffers(3, offsets, pa.py_buffer(b"ok\xff"))
    pq.write_table(pa.table({"text": pa.concat_arrays([strings, pa.array([None, "end"])])}), path)
    documents, dropped = _read(path)
    assert dropped == {"invalid_utf8": 1, "empty": 1, "missing_text_field": 1}
    assert [(d.id, d.text) for d in documents] == [("d.parquet:0", "ok"), ("d.parquet:4", "end")]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.parquet", b"no parquet", "a.parquet cannot be read as parquet"),
        ("a.jsonl.gz", b"no gzip", "a.jsonl.gz cannot be read as gzip-compressed jsonl"),
        ("a.txt.zst", b"no zstd", "a.txt.zst cannot be read as zstd-compressed text"),
        ("b.parquet", {"body": ["x"]}, r"b.parquet has no column 'text' \(--text_field\); its columns: body"),
        ("c.parquet", {"text": [1]}, "column 'text' .* holds int64, not strings"),
    ],
)
def test_unusable_file_is_found_before_the_work(tmp_path: Path, name: str, content: bytes | dict, message: str) -> None:
    path = tmp_path / name
    if isinstance(content, dict):
        pq.write_table(pa.table(content), path)
    else:
        path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        fingerprint_input(_file(path), "text")
