"""`python -m data_prep.verify` finds every kind of fault, and names it."""

import copy
import hashlib
import io
import json
import operator
import os
import random
import re
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import reduce
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep import shard_writer
from data_prep.manifest import complete_folder
from data_prep.packing import Pack
from data_prep.piece_ledger import PieceLedger
from data_prep.run_info import check_run_info, write_run_info
from data_prep.stats import collect_stats
from data_prep.verify import main, sample_folder, verify_folder
from pipeline.data.shard_format import FORMAT_VERSION, DataError, Manifest, completion_mark
from tests.data_prep.hand_packed import pack, whole, write_folder

Edit = Callable[[Manifest], None]
MASK = np.array([0, 0, 1, 1, 0, 0, 0, 1], np.uint8)


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three units of small samples: the first has two shards, the last one's source has labels."""
    folder = tmp_path_factory.mktemp("packed")
    text = [(0, "text", [_pack(f"0{n}") for n in range(9)]), (1, "text", [_pack(f"1{n}") for n in range(3)])]
    chat = (7, "chat", [_pack(f"c{n}", loss_mask=MASK) for n in range(3)])
    write_folder(folder, [*text, chat], seq_len=8)
    return folder


@pytest.fixture
def folder(packed: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return shutil.copytree(packed, tmp_path / "packed")


def _pack(name: str, **changes: object) -> Pack:
    """Two whole documents of 5 and 3 tokens."""
    return replace(pack([whole(f"a{name}", 5), whole(f"b{name}", 3)]), **changes)


def _edit_manifest(folder: Path, edit: Edit) -> None:
    """Changes the manifest and completes the folder anew, so that only the change itself is wrong."""
    manifest = Manifest.load(folder)
    edit(manifest)
    complete_folder(folder, manifest)


def _edit_index(folder: Path, edit: Callable[[np.ndarray], None]) -> None:
    """Changes the first shard's index and puts its new digest into the manifest."""
    path = folder / "shard-00000-000.idx.npy"
    index = np.load(path)
    edit(index)
    buffer = io.BytesIO()
    np.save(buffer, index)
    path.write_bytes(buffer.getvalue())
    digest = hashlib.sha256(buffer.getvalue()).hexdigest()

    def relist(manifest: Manifest) -> None:
        manifest.shards[0] = replace(manifest.shards[0], index_sha256=digest)

    _edit_manifest(folder, relist)


def test_whole_folder_passes_and_its_totals_are_printed(packed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert len(Manifest.load(packed).shards) == 4
    assert main([str(packed)]) == 0
    assert "all well: 15 samples, 120 tokens, 30 documents in 4 shards" in capsys.readouterr().out


def _telling_positions(path: Path) -> set[int]:
    """Of a tar: in a member's header, in the padding after a member, in the end mark; of an index: in its header."""
    if path.suffix == ".tar":
        return {0, 100, 148, 500, 512 + 128 + 8 * 4 + 1, path.stat().st_size - 700}
    return {0, 1, 7, 9, 20, 100} if path.suffix == ".npy" else {0, 1}


def test_any_flipped_bit_of_any_file_is_found(folder: Path) -> None:
    rng = random.Random(0)
    files = sorted(folder.iterdir())
    assert len(files) == 11 and {"run.json", "shard-00007-000.tar"} <= {path.name for path in files}
    for path in files:
        original = path.read_bytes()
        ends = {0, len(original) - 1}
        for position in ends | _telling_positions(path) | {rng.randrange(len(original)) for _ in range(30)}:
            damaged = bytearray(original)
            damaged[position] ^= 1 << rng.randrange(8)
            path.write_bytes(damaged)
            with pytest.raises(DataError, match=path.name.removesuffix(".sha256")):
                verify_folder(folder)
        path.write_bytes(original)
    verify_folder(folder)


def test_every_byte_of_the_small_files_counts(folder: Path) -> None:
    for name in ("run.json", "manifest.json.sha256"):
        path = folder / name
        original = path.read_bytes()
        for position in range(len(original)):
            for value in {original[position] ^ 1, original[position] ^ 0x20, ord(" ")} - {original[position]}:
                path.write_bytes(original[:position] + bytes([value]) + original[position + 1 :])
                with pytest.raises(DataError):
                    verify_folder(folder)
        path.write_bytes(original)


@pytest.mark.parametrize("change", [lambda raw: raw[:-1], lambda raw: raw + b"\0", lambda raw: b""])
def test_any_file_too_short_or_too_long_is_found(folder: Path, change: Callable[[bytes], bytes]) -> None:
    for path in sorted(folder.iterdir()):
        original = path.read_bytes()
        path.write_bytes(change(original))
        with pytest.raises(DataError):
            verify_folder(folder)
        path.write_bytes(original)


def test_missing_and_unlisted_files_are_named(folder: Path) -> None:
    for path in sorted(folder.iterdir()):
        original = path.read_bytes()
        path.unlink()
        for check in (verify_folder, lambda folder: sample_folder(folder, 1, 0)):
            with pytest.raises(DataError, match=path.name):
                check(folder)
        path.write_bytes(original)
    (folder / "shard-00002-000.tar.tmp").touch()
    with pytest.raises(DataError, match=r"shard-00002-000.tar.tmp is not listed in manifest.json"):
        verify_folder(folder)


def test_first_shard_of_a_unit_that_is_gone_with_its_entry(folder: Path) -> None:
    for path in folder.glob("shard-00000-000.*"):
        path.unlink()
    _edit_manifest(folder, lambda manifest: manifest.shards.__delitem__(0))
    with pytest.raises(DataError, match="lists shard-00000-001 after nothing: not in order"):
        verify_folder(folder)


@pytest.mark.parametrize("make", [Path.mkdir, lambda path: path.symlink_to("manifest.json")])
def test_unlisted_folders_and_links_are_named(folder: Path, make: Callable[[Path], None]) -> None:
    make(folder / "extra")
    with pytest.raises(DataError, match=r"extra is not listed in manifest.json"):
        verify_folder(folder)


def _swap_rows(index: np.ndarray) -> None:
    index[[0, 1]] = index[[1, 0]]


def _lose_a_token(index: np.ndarray) -> None:
    index["tokens"][0] -= 1
    index["tokens"][1] += 1


def _change_digest(index: np.ndarray) -> None:
    index["digest"][2] ^= 1


def _shorten_last(index: np.ndarray) -> None:
    index["length"][-1] -= 512


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (_swap_rows, "idx.npy: sample 0 begins at byte 0 of the tar, the index says 3072"),
        (_lose_a_token, "sample 0 has 8 tokens, its index says 7"),
        (_change_digest, "sample 2 does not match its digest"),
        (_shorten_last, "does not end after the last sample"),
    ],
)
def test_index_that_does_not_match_the_tar(folder: Path, edit: Callable[[np.ndarray], None], message: str) -> None:
    _edit_index(folder, edit)
    with pytest.raises(DataError, match=message):
        verify_folder(folder)


def _replace_tar(folder: Path, raw: bytes) -> None:
    """Changes the first shard's tar and what the manifest says of it."""
    (folder / "shard-00000-000.tar").write_bytes(raw)

    def relist(manifest: Manifest) -> None:
        digest = hashlib.sha256(raw).hexdigest()
        manifest.shards[0] = replace(manifest.shards[0], size=len(raw), sha256=digest)

    _edit_manifest(folder, relist)


@pytest.mark.parametrize("end", [bytes(512) + b"x" * 512 + bytes(1024), bytes(512) + b"x" * 512, bytes(512)])
def test_tar_that_does_not_end_as_its_index_says(folder: Path, end: bytes) -> None:
    _replace_tar(folder, (folder / "shard-00000-000.tar").read_bytes()[:-1024] + end)
    with pytest.raises(DataError, match="does not end after the last sample"):
        verify_folder(folder)


def _reverse_shards(manifest: Manifest) -> None:
    manifest.shards.reverse()


def _drop_shard(manifest: Manifest) -> None:
    del manifest.shards[-1]


def _entry(**changes: object) -> Edit:
    def edit(manifest: Manifest) -> None:
        manifest.shards[0] = replace(manifest.shards[0], **changes)

    return edit


def _total(name: str) -> Edit:
    """Off by one in the whole and in the source, so that the two agree."""

    def edit(manifest: Manifest) -> None:
        manifest.totals[name] += 1
        manifest.sources[0]["totals"][name] += 1

    return edit


def _total_alone(manifest: Manifest) -> None:
    manifest.totals["duplicate_documents"] = 3


def _dropped_alone(manifest: Manifest) -> None:
    manifest.dropped["documents"] = {"not_utf8": 2}


def _smaller_seq_len(manifest: Manifest) -> None:
    manifest.seq_len = 7


def _relabel(source: int, labels: bool) -> Edit:
    def edit(manifest: Manifest) -> None:
        manifest.sources[source]["labels"] = labels

    return edit


def _two_of_one_name(manifest: Manifest) -> None:
    manifest.sources.append(dict(manifest.sources[0]))


def _no_totals(manifest: Manifest) -> None:
    del manifest.sources[0]["totals"]


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (_reverse_shards, "lists shard-00001-000 after shard-00007-000: not in order"),
        (_drop_shard, "shard-00007-000.idx.npy is not listed"),
        (_entry(num_samples=4), "not the index of 4 samples"),
        (_entry(num_tokens=4), "adds up to .* tokens, the manifest says 4"),
        (_entry(sha256="0" * 64), "shard-00000-000.tar does not match its sha256"),
        (_entry(name="../shard-00000-000"), "lists a shard '../shard-00000-000'"),
        (_entry(source="web"), "lists shard-00000-000 of the source 'web', which it does not describe"),
        (_entry(source="chat"), "has no loss_mask, but its source 'chat' has labels"),
        (_total("samples"), "totals 13 samples of source text, its shards hold 12"),
        (_total("tokens"), "totals 97 tokens of source text, its shards hold 96"),
        (_total("documents"), "totals 25 documents of source text, its shards hold 24"),
        (_total("text_bytes"), "totals 289 text_bytes of source text, its shards hold 288"),
        (_total("cut_documents"), "totals 1 cut_documents of source text, its shards hold 0"),
        (_total_alone, "totals 3 duplicate_documents, its sources 0"),
        (_dropped_alone, "says that {'not_utf8': 2} documents were dropped, its sources {}"),
        (_smaller_seq_len, "sample 0 has 8 tokens, more than seq_len 7"),
        (_relabel(1, False), "has a loss_mask, but its source 'chat' has no labels"),
        (_relabel(0, True), "has no loss_mask, but its source 'text' has labels"),
        (_two_of_one_name, "two sources of one name"),
        (_no_totals, "lists a source without totals"),
    ],
)
def test_manifest_that_does_not_match_the_shards(folder: Path, edit: Edit, message: str) -> None:
    _edit_manifest(folder, edit)
    with pytest.raises(DataError, match=message):
        verify_folder(folder)


def _reseal(folder: Path, raw: bytes) -> None:
    (folder / "manifest.json").write_bytes(raw)
    (folder / "manifest.json.sha256").write_bytes(completion_mark(raw))


@pytest.mark.parametrize(
    "raw", [b"[" * 200_000, b"[]", b"{", b"\xff", b'"x"', b"1" * 5000, b'{"a":' * 500 + b"1" + b"}" * 500]
)
def test_what_is_no_manifest_is_refused_by_name(folder: Path, raw: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    _reseal(folder, raw)
    assert main([str(folder)]) == 1
    error = capsys.readouterr().err
    assert f"{folder}/manifest.json: it is no" in error and error.count("\n") == 1


WRONG_VALUES = [
    None,
    -1,
    10**30,
    "x",
    [],
    {},
    [None],
    True,
    1.5,
    float("nan"),
    "a\x1b]0;x\x07",
    "\ud800",
    {"x": {"y": 1}},
]


def _paths(value: object, path: tuple = ()) -> Iterator[tuple]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*path, key)
        yield from _paths(inner, (*path, key))


def test_no_value_of_any_type_in_the_manifest_is_more_than_one_line(tmp_path: Path) -> None:
    """Every field in turn takes every wrong value, or is taken away; all three readers accept it or name the fault."""
    dropped = {"files": {"hidden": 1}, "documents": {"empty": 2}, "tokens": {"tail": 1}}
    write_folder(tmp_path / "f", [(0, "text", [_pack("0")])], seq_len=8, sources={"text": {"dropped": dropped}})
    folder, num_refused = tmp_path / "f", 0
    manifest = json.loads((folder / "manifest.json").read_bytes())
    manifest["inputs"] = [{"source": "text", "name": "a", "format": "text", "size": 1, "sha256": "0", "dropped": {}}]
    for path in [path for path in _paths(manifest) if path[0] != "packing"]:
        for value in [*WRONG_VALUES, ...]:
            changed = copy.deepcopy(manifest)
            holder = reduce(operator.getitem, path[:-1], changed)
            if value is ...:
                del holder[path[-1]]
            else:
                holder[path[-1]] = value
            _reseal(folder, (json.dumps(changed, indent=1, sort_keys=True) + "\n").encode())
            for check in (verify_folder, lambda folder: sample_folder(folder, 2, 0), collect_stats):
                try:
                    check(folder)
                except DataError as error:
                    num_refused += 1
                    assert str(error).startswith(str(folder))
    assert num_refused > 1000


def _piece(**changes: object) -> list[dict]:
    return [whole("a", 5) | changes, whole("b", 3)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cu_seqlens": np.array([0, 5, 7], np.int32)}, "cu_seqlens must rise from 0 to the 8 tokens"),
        ({"cu_seqlens": np.array([1, 5, 8], np.int32)}, "cu_seqlens must rise"),
        ({"cu_seqlens": np.array([0, 5, 5, 8], np.int32)}, "cu_seqlens must rise"),
        ({"cu_seqlens": np.array([0, 5, 8], np.int64)}, "cu_seqlens.npy must be int32"),
        ({"input_ids": np.arange(8, dtype=np.int64)}, "input_ids.npy must be uint32"),
        ({"cu_seqlens": np.array([0, 4, 8], np.int32)}, "meta.json says tokens 0 to 5 .* cu_seqlens says 4"),
        ({"documents": _piece(tokens=4)}, "meta.json says tokens 0 to 5 of 4"),
        ({"documents": _piece(start=-1, end=4)}, "meta.json says tokens -1 to 4"),
        ({"documents": _piece(tokens="5")}, "lists a document without id, start, end, tokens or origin"),
        ({"documents": _piece(id=None)}, "lists a document without id"),
        ({"documents": _piece(origin={"bytes": True})}, "says that document a has True bytes"),
        ({"documents": _piece()[:1]}, "meta.json must list the 2 documents"),
        ({"loss_mask": MASK * 2}, "loss_mask holds 2"),
        ({"loss_mask": MASK[:5]}, r"loss_mask must be uint8 \[8\]"),
    ],
)
def test_sample_that_contradicts_itself(tmp_path: Path, changes: dict, message: str) -> None:
    write_folder(tmp_path, [(0, "text", [_pack("0", **changes)])], seq_len=8)
    with pytest.raises(DataError, match=message):
        verify_folder(tmp_path)


def _cut(name: str, bounds: list[int], tokens: int) -> list[Pack]:
    """A sample for each piece of a document between `bounds`."""
    return [pack([whole(name, tokens, start=a, end=b)]) for a, b in pairwise(bounds)]


def test_pieces_of_a_document_in_any_order_and_any_unit(tmp_path: Path) -> None:
    first, second, rest = _cut("long", [0, 8, 16, 19], 19)
    manifest = write_folder(tmp_path, [(0, "text", [rest]), (1, "text", [second]), (4, "text", [first])], seq_len=8)
    assert manifest.totals["cut_documents"] == 1
    verify_folder(tmp_path)


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (_cut("long", [0, 8, 16], 19), "only 16 of the 19 tokens of document long"),
        ([*_cut("long", [0, 8], 14), *_cut("long", [6, 12], 14)], "do not join: 6 follows 8"),
        ([*_cut("long", [0, 8], 16), *_cut("long", [8, 16], 17)], "has 17 tokens, .*sample 0 says 16"),
        ([pack([whole("same", 8)]), pack([whole("same", 5)])], "shard-00000-000: two documents of one source"),
    ],
)
def test_documents_whose_pieces_do_not_add_up(tmp_path: Path, samples: list[Pack], message: str) -> None:
    write_folder(tmp_path, [(0, "text", samples)], seq_len=8)
    with pytest.raises(DataError, match=message):
        verify_folder(tmp_path)


def test_tokens_that_the_manifest_says_were_dropped_may_lack(tmp_path: Path) -> None:
    lost = {"files": {}, "documents": {}, "tokens": {"tail": 3}}
    write_folder(tmp_path, [(0, "text", _cut("long", [0, 8, 16], 19))], seq_len=8, sources={"text": {"dropped": lost}})
    verify_folder(tmp_path)


def test_long_document_of_many_pieces_costs_time_by_their_number() -> None:
    ledger, number = PieceLedger(), 100_000
    began = time.process_time()
    for start in range(number):
        ledger.add("text", whole("long", number, start=start, end=start + 1), "here")
    assert time.process_time() - began < 2
    ledger.end_shard("shard")
    ledger.finish({})


def test_keys_out_of_order_are_found(tmp_path: Path) -> None:
    manifest = write_folder(tmp_path, [(3, "text", [_pack("0")])], seq_len=8)
    for suffix in (".tar", ".idx.npy"):
        (tmp_path / f"shard-00003-000{suffix}").rename(tmp_path / f"shard-00004-000{suffix}")
    manifest.shards[0] = replace(manifest.shards[0], name="shard-00004-000")
    complete_folder(tmp_path, manifest)
    for check in (verify_folder, lambda folder: sample_folder(folder, 1, 0)):
        with pytest.raises(DataError, match="has key 00003-000000, expected 00004-000000"):
            check(tmp_path)


def _object_array(_: str, content: bytes) -> bytes:
    """What np.load would unpickle."""
    buffer = io.BytesIO()
    np.save(buffer, np.array([os.getcwd, 1], dtype=object), allow_pickle=True)
    return buffer.getvalue()


def _newer_npy(_: str, content: bytes) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.load(io.BytesIO(content)), version=(2, 0))
    return buffer.getvalue()


MEMBER = shard_writer.tar_member


@pytest.mark.parametrize(
    ("member", "message"),
    [
        (lambda name, content: MEMBER("../" + name, content), "member '../0.* has no name of a sample's part"),
        (lambda name, content: MEMBER("/etc/" + name, content), "member '/etc/0.* has no name of a sample's part"),
        (lambda name, content: MEMBER(name + ".sh", content), "member '0.*npy.sh' has no name of a sample's part"),
        (lambda name, content: MEMBER(name, content) + _symbolic_link(name), "no header of a plain file .*link.npy"),
        (lambda name, content: MEMBER(name, _object_array(name, content)), "pickled objects are never loaded"),
        (lambda name, content: MEMBER(name, _newer_npy(name, content)), "not an .npy file of one plain array"),
        (lambda name, content: MEMBER(name, content).replace(b"0000644", b"0000744", 1), "no header of a plain file"),
        (lambda name, content: MEMBER(name, content)[:-1] + b"x", "not byte for byte as this format writes"),
    ],
    ids=["parent", "absolute", "script", "link", "pickle", "npy version", "header checksum", "padding"],
)
def test_hostile_or_foreign_content_with_correct_digests_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, member: Callable[[str, bytes], bytes], message: str
) -> None:
    def foreign(name: str, content: bytes) -> bytes:
        return member(name, content) if name.endswith("input_ids.npy") else MEMBER(name, content)

    with monkeypatch.context() as patch:
        patch.setattr(shard_writer, "tar_member", foreign)
        write_folder(tmp_path, [(0, "text", [_pack("0")])], seq_len=8)
    with pytest.raises(DataError, match=message):
        verify_folder(tmp_path)


def _symbolic_link(name: str) -> bytes:
    link = tarfile.TarInfo(name.split(".")[0] + ".link.npy")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    return link.tobuf()


def test_sampled_check_says_what_it_covered(packed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(packed), "--sample", "5", "--seed", "3"]) == 0
    out = capsys.readouterr().out
    assert "15 samples, 120 tokens" in out and "the content of 5 of 15 samples only" in out and "--seed 3" in out
    assert main([str(packed), "--sample", "5"]) == 0
    assert re.search(r"--seed \d+", capsys.readouterr().out)


def test_sampled_check_spreads_over_the_folder_and_finds_what_it_reads(folder: Path) -> None:
    """Every third of the samples is hit once whatever the seed, so 5 of 15 damaged in a row never escape 3."""
    path = folder / "shard-00000-000.tar"
    assert Manifest.load(folder).shards[0].num_samples >= 5
    raw = bytearray(path.read_bytes())
    for row in np.load(folder / "shard-00000-000.idx.npy")[:5]:
        raw[int(row["offset"]) + 700] ^= 1
    path.write_bytes(raw)
    for seed in range(5):
        with pytest.raises(DataError, match=r"shard-00000-000.tar: sample \d does not match its digest"):
            sample_folder(folder, 3, seed)
    with pytest.raises(DataError, match="sample 0 does not match its digest"):
        sample_folder(folder, 10**9, 0)


def test_sampled_check_reads_every_index_and_total(folder: Path) -> None:
    path = folder / "shard-00007-000.idx.npy"
    original = path.read_bytes()
    path.write_bytes(original[:-1] + bytes([original[-1] ^ 1]))
    with pytest.raises(DataError, match=r"shard-00007-000.idx.npy does not match its sha256"):
        sample_folder(folder, 1, 0)
    path.write_bytes(original)
    _edit_manifest(folder, _total("tokens"))
    with pytest.raises(DataError, match="totals 97 tokens of source text"):
        sample_folder(folder, 1, 0)


@pytest.mark.slow
def test_command_exits_non_zero_with_one_line(folder: Path, tmp_path: Path) -> None:
    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "data_prep.verify", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=tmp_path)

    assert run(folder.name).returncode == 0
    (folder / "shard-00000-000.tar").unlink()
    done = run(folder)
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert "shard-00000-000.tar is missing" in done.stderr
    assert "--sample: must be >= 1, found 0" in run(folder, "--sample", 0).stderr


def test_manifest_of_another_format_version_is_refused(folder: Path) -> None:
    def edit(manifest: Manifest) -> None:
        manifest.format_version = FORMAT_VERSION + 1

    _edit_manifest(folder, edit)
    with pytest.raises(DataError, match=f"has format version {FORMAT_VERSION + 1}, this code reads {FORMAT_VERSION}"):
        verify_folder(folder)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(st.characters(codec="utf-8")),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(facts=st.dictionaries(st.text(max_size=5), JSON, max_size=4), data=st.data())
@settings(max_examples=60, deadline=None)
def test_run_info_comes_back_and_any_changed_byte_is_found(
    tmp_path_factory: pytest.TempPathFactory, facts: dict, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("run")
    write_run_info(folder, facts)
    assert check_run_info(folder) == facts
    path = folder / "run.json"
    raw = bytearray(path.read_bytes())
    position = data.draw(st.integers(0, len(raw) - 1))
    raw[position] = data.draw(st.integers(0, 255).filter(lambda value: value != raw[position]))
    path.write_bytes(raw)
    with pytest.raises(DataError, match=r"run.json"):
        check_run_info(folder)


def test_run_info_with_numbers_as_keys_comes_back(tmp_path: Path) -> None:
    write_run_info(tmp_path, {"seconds": {2: 1, 10: 2}})
    assert check_run_info(tmp_path) == {"seconds": {"2": 1, "10": 2}}
    assert json.loads((tmp_path / "run.json").read_text())["sha256"]
