"""`python -m data_prep.inspect` shows what is in a sample, with the very tokenizer that made it."""

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

import data_prep
from data_prep.packing import Pack
from data_prep.sample_text import VISIBLE_CONTROLS, Marks, render_document
from data_prep.sample_view import main
from pipeline.data.shard_format import Manifest, tokenizer_fingerprint
from pipeline.errors import escape_controls
from tests.data_prep.hand_packed import pack, whole, write_folder

TEXTS = ["The first text.\nIt has two lines.", "User: 漢字?\nAssistant: évicted \x1b[31mtokens"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Path) -> Path:
    """Sample 0: one text without labels. Sample 1: two conversations. Sample 2: the last piece of a long document."""
    folder = tmp_path_factory.mktemp("packed")
    ids = [np.array(_tokenizer(tiny_tokenizer).encode(text).ids, np.uint32) for text in TEXTS]
    mask = np.zeros(len(ids[1]) + 4, np.uint8)
    mask[-12:-4] = 1
    text = _sample([("a.txt", ids[0])], None)
    chat = _sample([("chat:7", ids[1]), ("chat:8", ids[0][:4])], mask)
    long = pack([whole("long", 900, start=100, end=900)], np.resize(ids[0], 800), np.ones(800, np.uint8))
    write_folder(
        folder,
        [(0, "text", [text]), (3, "chat", [chat, long])],
        seq_len=1000,
        tokenizer_name=str(tiny_tokenizer),
        tokenizer_sha256=tokenizer_fingerprint(tiny_tokenizer / "tokenizer.json"),
    )
    return folder


def _tokenizer(folder: Path) -> Tokenizer:
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


def _sample(documents: list[tuple[str, np.ndarray]], mask: np.ndarray | None) -> Pack:
    return pack([whole(n, len(ids)) for n, ids in documents], np.concatenate([ids for _, ids in documents]), mask)


def _show(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main([str(argument) for argument in arguments]) == 0
    return capsys.readouterr().out


def _refusal(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main([str(argument) for argument in arguments]) == 1
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1
    return captured.err


def test_first_sample_is_shown_by_default(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = _show(capsys, folder)
    assert "sample 0 of 3: key 00000-000000, number 0 of shard-00000-000.tar, source text" in out
    assert re.search(r"document 0: tokens 0-\d+, whole\n    id a.txt, origin {\"bytes\": \d+}", out)
    assert "    | <|begin|>The first text.\n    | It has two lines." in out
    assert "⟦" not in out and "supervised" not in out


def test_supervised_parts_are_marked_and_counted(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = _show(capsys, folder, 1)
    first, second = out.split("  document ")[1:]
    assert ", 8 supervised (" in out.split("\n")[1] and "8 supervised" in first and "0 supervised (0.0%)" in second
    marked = re.findall("⟦(.*?)⟧", out, re.DOTALL)
    text = out.replace("⟦", "").replace("⟧", "")
    assert len(marked) == 1 and text.rstrip().count(marked[0]) == 1 and 1 <= len(marked[0]) < 40
    assert "User: 漢字?" in text and "évicted" in text


def test_control_characters_do_not_reach_the_terminal(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "\x1b" in TEXTS[1]
    out = _show(capsys, folder, 1).replace("⟦", "").replace("⟧", "")
    assert "\x1b" not in out and r"\x1b[31m" in out
    assert escape_controls("a\u202eb\r\u200b\n", VISIBLE_CONTROLS) == "a\\u202eb\\r\\u200b\n"


def test_piece_of_a_long_document_shows_its_ends_only(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = _show(capsys, folder, 2, "--width", "5")
    assert "tokens 0-800, the piece 100-900 of a document of 900" in out
    assert "... 790 tokens ..." in out and out.count("⟦") == 2


def test_several_samples_in_the_order_asked_for(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert re.findall(r"sample (\d) of 3", _show(capsys, folder, 2, 0)) == ["2", "0"]


@pytest.mark.parametrize("number", [-1, 3, 10**30])
def test_sample_out_of_range_is_named_with_the_legal_range(
    folder: Path, number: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert f"there is no sample {number} in the folder; its samples are 0 to 2" in _refusal(capsys, folder, 0, number)


def test_other_tokenizer_is_refused_with_both_fingerprints(
    folder: Path, tiny_tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = _tokenizer(tiny_tokenizer)
    other.add_tokens(["memory"])
    other.save(str(tmp_path / "tokenizer.json"))
    message = _refusal(capsys, folder, "--tokenizer", tmp_path)
    for path in (tmp_path, tiny_tokenizer):
        assert tokenizer_fingerprint(path / "tokenizer.json") in message
    (tmp_path / "tokenizer.json").write_text("[")
    assert "is not a tokenizer" in _refusal(capsys, folder, "--tokenizer", tmp_path)
    assert "there is no" in _refusal(capsys, folder, "--tokenizer", tmp_path / "nowhere")


def test_ids_are_shown_without_a_tokenizer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mask = np.array([0, 1, 1, 0], np.uint8)
    sample = pack([whole("a", 4)], np.array([5, 70000, 9, 1], np.uint32), mask)
    write_folder(tmp_path / "data", [(0, "chat", [sample])], seq_len=8, tokenizer_name="org/model")
    out = _show(capsys, tmp_path / "data")
    assert "no tokenizer: token ids are shown; pass --tokenizer with the folder or hub id of org/model" in out
    assert "    | 5 ⟦70000 9 ⟧1 " in out


def test_tokenizer_is_found_wherever_it_was_and_its_loss_is_told(
    tiny_tokenizer: Path,
    tmp_path: Path,
    run_prepare: Callable[..., Manifest],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Named by a relative path, from another folder; then moved, replaced, and on a machine that never had it."""
    shutil.copytree(tiny_tokenizer, tmp_path / "models" / "tok")
    (tmp_path / "a.txt").write_text("The first text.")
    monkeypatch.chdir(tmp_path / "models")
    data = tmp_path / "data"
    run_prepare([tmp_path / "a.txt"], data, tokenizer="tok")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert "The first text." in _show(capsys, data)
    (tmp_path / "models/tok").rename(tmp_path / "elsewhere/tok")
    assert "The first text." in _show(capsys, data), "by the manifest's name for it"
    (tmp_path / "elsewhere/tok").rename(tmp_path / "elsewhere/other")
    out = _show(capsys, data)
    assert re.search(
        r"token ids are shown; pass --tokenizer .* of tok \(.*/models/tok: there is no tokenizer.json; ", out
    )
    assert out.count("\n    | ") == 1 and re.search(r"\n    \| \d+ \d+ ", out)
    assert "The first text." in _show(capsys, data, "--tokenizer", "other")
    assert "The first text." in _show(capsys, data, "--tokenizer", "other/tokenizer.json")
    other = _tokenizer(tiny_tokenizer)
    other.add_tokens(["memory"])
    (tmp_path / "models/tok").mkdir()
    other.save(str(tmp_path / "models/tok/tokenizer.json"))
    assert "models/tok is another one by now; the folder tok: there is no tokenizer.json" in _show(capsys, data)
    (data / "run.json").unlink()
    assert "shown; pass --tokenizer with the folder or hub id of tok (the folder tok: there is no" in _show(
        capsys, data
    )


def test_tokenizer_of_a_hub_id_is_found_among_what_was_fetched(
    folder: Path,
    tiny_tokenizer: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    snapshot = tmp_path / "hub/models--org--model/snapshots/abc"
    shutil.copytree(tiny_tokenizer, snapshot)
    (tmp_path / "hub/models--org--model/refs").mkdir()
    (tmp_path / "hub/models--org--model/refs/main").write_text("abc")
    sample = pack([whole("a", 3)], np.array(_tokenizer(tiny_tokenizer).encode("text").ids[:3], np.uint32))
    fingerprint = tokenizer_fingerprint(tiny_tokenizer / "tokenizer.json")
    write_folder(
        tmp_path / "data", [(0, "a", [sample])], seq_len=8, tokenizer_name="org/model", tokenizer_sha256=fingerprint
    )
    out = _show(capsys, tmp_path / "data")
    assert "the hub's org/model on this machine: there is no tokenizer.json" in out and "<|begin|>" not in out
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    assert "<|begin|>te" in _show(capsys, tmp_path / "data")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "<|begin|>te" in _show(capsys, tmp_path / "data", "--tokenizer", "org/model")
    message = _refusal(capsys, tmp_path / "data", "--tokenizer", "org/other")
    assert "--tokenizer org/other: there is no such folder or file, and the hub gave no tokenizer.json (" in message


def test_damaged_sample_is_named(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = shutil.copytree(folder, tmp_path / "packed")
    raw = bytearray((copy / "shard-00003-000.tar").read_bytes())
    raw[700] ^= 1
    (copy / "shard-00003-000.tar").write_bytes(raw)
    assert "shard-00003-000.tar: sample 0 does not match its digest" in _refusal(capsys, copy, 1)


@given(text=st.text(min_size=1, max_size=30), data=st.data())
def test_marks_never_change_the_text(tiny_tokenizer: Path, text: str, data: st.DataObject) -> None:
    tokenizer = _tokenizer(tiny_tokenizer)
    ids = np.array(tokenizer.encode(text, add_special_tokens=False).ids, np.uint32)
    mask = np.array(data.draw(st.lists(st.integers(0, 1), min_size=len(ids), max_size=len(ids))), np.uint8)
    marks = Marks("\ue000", "\ue001")  # private characters, which are escaped in the text
    shown = render_document(ids, mask, tokenizer.decode, 30 * 4, marks)
    plain = render_document(ids, None, tokenizer.decode, 30 * 4, marks)
    assert shown.replace("\ue000", "").replace("\ue001", "") == plain
    assert shown.count("\ue000") == shown.count("\ue001") == int((np.diff(mask, prepend=0) == 1).sum())
    assert "\ue000" not in plain


@pytest.mark.slow
def test_command_runs_in_any_folder(folder: Path, tmp_path: Path) -> None:
    """Also in data_prep itself, where a module named inspect would hide the standard library's."""
    for here in (tmp_path, Path(data_prep.__file__).parent):
        command = [sys.executable, "-m", "data_prep.inspect", str(folder), "0", "9"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=here)
        assert done.returncode == 1 and done.stderr.count("\n") == 1
        ascii_only = {"PYTHONIOENCODING": "ascii"}
        done = subprocess.run(command[:-1], capture_output=True, timeout=60, cwd=here, env=ascii_only)
        assert done.returncode == 0 and b"The first text." in done.stdout
