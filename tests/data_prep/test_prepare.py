"""The whole preparation: same bytes for any number of workers and after a kill, nothing lost, nothing overwritten."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import webdataset
from tokenizers import Tokenizer

from data_prep.receipts import UnitReceipt
from data_prep.units import Unit, process_unit
from data_prep.verify import verify_folder
from pipeline.data.loader import PackedDataset
from pipeline.data.shard_format import DataError, Manifest
from pipeline.errors import UserError
from pipeline.folder_claim import OWNER_NAME, claimed_folder

LAUNCHER = Path(__file__).parents[2] / "launchers" / "prepare.py"
Prepare = Callable[..., Manifest]


def content(folder: Path) -> dict[str, bytes]:
    """Every file of a folder that must be the same in an equal run."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file() and path.name != "run.json"}


def _command(corpus: Path, tokenizer: Path, output: Path, *more: str) -> list[str]:
    """The launcher with the settings of `run_prepare`."""
    flags = [
        "--packing",
        "concat",
        "--seq_len",
        "256",
        "--unit_bytes",
        "40000",
        "--shard_bytes",
        "30000",
        "--extensions",
        ".txt",
        ".jsonl",
    ]
    where = ["--inputs", str(corpus), "--tokenizer", str(tokenizer), "--output", str(output)]
    return [sys.executable, str(LAUNCHER), *where, *flags, *more]


def test_every_document_comes_back_token_for_token(
    corpus: Path, tiny_tokenizer: Path, tmp_path: Path, run_prepare: Prepare
) -> None:
    manifest = run_prepare([corpus], tmp_path / "out")
    dataset = PackedDataset(tmp_path / "out")
    pieces: dict[str, list[np.ndarray]] = {}
    for number in range(len(dataset)):
        sample = dataset[number]
        for piece, start, end in zip(
            sample.meta["documents"], sample.cu_seqlens[:-1], sample.cu_seqlens[1:], strict=True
        ):
            pieces.setdefault(piece["id"], []).append(sample.input_ids[start:end])
    tokenizer = Tokenizer.from_file(str(tiny_tokenizer / "tokenizer.json"))
    texts = {f"default/{path.relative_to(corpus)}": path.read_text() for path in corpus.rglob("*.txt")}
    assert {name: np.concatenate(ids).tolist() for name, ids in pieces.items()} == {
        name: [*tokenizer.encode(text).ids, 1] for name, text in texts.items()
    }
    assert manifest.totals == {
        "samples": len(dataset),
        "tokens": dataset.num_tokens,
        "documents": len(texts),
        "text_bytes": sum(len(text.encode()) for text in texts.values()),
        "cut_documents": sum(len(found) > 1 for found in pieces.values()),
        "duplicate_documents": 0,
    }
    assert manifest.totals["cut_documents"] > 3
    assert len({shard.name.split("-")[1] for shard in manifest.shards}) > 3, "needs several work units"
    assert any(shard.name.endswith("-001") for shard in manifest.shards), "needs a unit of several shards"
    verify_folder(tmp_path / "out")


def test_plain_webdataset_reads_the_shards(corpus: Path, tmp_path: Path, run_prepare: Prepare) -> None:
    manifest = run_prepare([corpus], tmp_path / "out")
    tars = [str(tmp_path / "out" / shard.tar_name) for shard in manifest.shards]
    read = list(webdataset.WebDataset(tars, shardshuffle=False).decode())
    dataset = PackedDataset(tmp_path / "out")
    assert len(read) == len(dataset) and len({sample["__key__"] for sample in read}) == len(read)
    for number, sample in enumerate(read):
        ours = dataset[number]
        assert sample["__key__"] == ours.key and sample["meta.json"] == ours.meta
        np.testing.assert_array_equal(sample["input_ids.npy"], ours.input_ids)
        np.testing.assert_array_equal(sample["cu_seqlens.npy"], ours.cu_seqlens)


@pytest.mark.slow
def test_one_two_and_three_workers_write_the_same_bytes(corpus: Path, tmp_path: Path, run_prepare: Prepare) -> None:
    folders = [tmp_path / str(workers) for workers in (1, 2, 3)]
    for workers, folder in enumerate(folders, 1):
        run_prepare([corpus], folder, num_workers=workers)
    assert content(folders[0]) == content(folders[1]) == content(folders[2])


def test_finished_unit_is_reused_only_while_its_files_match(
    corpus: Path, tmp_path: Path, run_prepare: Prepare, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, output = tmp_path / "whole", tmp_path / "out"
    manifest = run_prepare([corpus], whole)

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("data_prep.prepare.complete_folder", stop)
        with pytest.raises(KeyboardInterrupt):
            run_prepare([corpus], output)
    damaged = output / manifest.shards[0].tar_name
    raw = bytearray(damaged.read_bytes())
    raw[700] ^= 1
    damaged.write_bytes(raw)
    run_prepare([corpus], output)
    num_units = len({shard.name.split("-")[1] for shard in manifest.shards})
    facts = json.loads((output / "run.json").read_text())
    assert facts["units_reused"] == num_units - 1
    assert facts["versions"]["tokenizers"] and facts["command"] and facts["commit"]
    assert content(output) == content(whole)


def test_finished_folder_is_left_alone(
    corpus: Path, tmp_path: Path, run_prepare: Prepare, capsys: pytest.CaptureFixture[str]
) -> None:
    first = run_prepare([corpus], tmp_path / "out")
    times = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    assert run_prepare([corpus], tmp_path / "out", num_workers=1).sha256 == first.sha256
    assert "already complete" in capsys.readouterr().out
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()} == times


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seq_len": 128}, "seq_len is 256 there, 128 now"),
        ({"append_eos": False}, "append_eos is True there, False now"),
        ({"unit_bytes": 50_000}, "unit_bytes is 40000 there, 50000 now"),
        ({"text_field": "body"}, "source default: text_field is text there, body now"),
        ({"method": "best_fit"}, "method is concat there, best_fit now"),
        ({"weight": 2.0}, "source default: weight is None there, 2.0 now"),
        ({"inputs": "fewer"}, r"input is 12 files \(\w+\) there, 8 files"),
    ],
)
def test_folder_of_another_run_is_refused_naming_both_values(
    corpus: Path,
    tmp_path: Path,
    run_prepare: Prepare,
    monkeypatch: pytest.MonkeyPatch,
    finished: bool,
    changes: dict,
    message: str,
) -> None:
    output = tmp_path / "out"
    run_prepare([corpus], output)
    if not finished:
        (output / "manifest.json.sha256").unlink()
    before = content(output)
    inputs = [corpus / "deep"] if "inputs" in changes else [corpus]
    with pytest.raises(DataError, match=message):
        run_prepare(inputs, output, **{k: v for k, v in changes.items() if k != "inputs"})
    assert content(output) == before


def test_changed_input_is_another_run(tmp_path: Path, run_prepare: Prepare) -> None:
    source = tmp_path / "a.txt"
    source.write_text("one text")
    run_prepare([source], tmp_path / "out")
    source.write_text("two text")
    with pytest.raises(DataError, match=r"holds data made with other parameters .*input is 1 files"):
        run_prepare([source], tmp_path / "out")


def test_folder_with_other_files_and_a_file_are_refused(corpus: Path, tmp_path: Path, run_prepare: Prepare) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(DataError, match=r"holds other files \(thesis.tex\)"):
        run_prepare([corpus], tmp_path)
    with pytest.raises(DataError, match=r"thesis.tex is a file"):
        run_prepare([corpus], tmp_path / "thesis.tex")


def test_second_run_on_the_same_folder_is_refused(corpus: Path, tmp_path: Path, run_prepare: Prepare) -> None:
    output = tmp_path / "out"
    with claimed_folder(output):
        with pytest.raises(UserError, match="another run is writing there"):
            run_prepare([corpus], output)
    run_prepare([corpus], output)


def test_a_run_that_another_one_has_taken_over_writes_no_more(
    corpus: Path, tmp_path: Path, run_prepare: Prepare, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, processed = tmp_path / "out", []

    def process_and_lose(unit: Unit) -> UnitReceipt:
        processed.append(receipt := process_unit(unit))
        (output / OWNER_NAME).write_text('{"token": "another", "pid": 4711, "host": "node7", "since": "noon"}')
        return receipt

    monkeypatch.setattr("data_prep.prepare.process_unit", process_and_lose)
    with pytest.raises(UserError, match=r"taken over by another run \(process 4711 on node7"):
        run_prepare([corpus], output)
    assert len(processed) == 1 and not (output / "manifest.json").exists() and (output / OWNER_NAME).exists()


def test_dropped_documents_are_in_the_manifest_by_input_and_reason(
    tmp_path: Path, run_prepare: Prepare, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "in"
    source.mkdir()
    (source / "bad.txt").write_bytes(b"\xff")
    (source / "mixed.jsonl").write_text('{"text": "good"}\n{"text": ""}\n{"text": \n{}\n')
    manifest = run_prepare([source], tmp_path / "out")
    assert manifest.dropped["documents"] == {
        "invalid_utf8": 1,
        "empty": 1,
        "malformed_json": 1,
        "missing_text_field": 1,
    }
    assert [(entry["name"], entry["dropped"]) for entry in manifest.inputs] == [
        ("bad.txt", {"invalid_utf8": 1}),
        ("mixed.jsonl", {"empty": 1, "malformed_json": 1, "missing_text_field": 1}),
    ]
    assert Manifest.load(tmp_path / "out").totals["documents"] == 1


def test_document_without_a_token_is_counted(tmp_path: Path, tiny_tokenizer: Path, run_prepare: Prepare) -> None:
    raw = json.loads((tiny_tokenizer / "tokenizer.json").read_text())
    raw["post_processor"] = None
    raw["normalizer"] = {"type": "Replace", "pattern": {"String": "gone"}, "content": ""}
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    (folder / "tokenizer.json").write_text(json.dumps(raw))
    source = tmp_path / "in.jsonl"
    source.write_text('{"text": "gone"}\n{"text": "here"}\n')
    manifest = run_prepare([source], tmp_path / "out", tokenizer=str(folder), append_eos=False)
    assert manifest.dropped["documents"] == {"no_tokens": 1} and manifest.totals["documents"] == 1
    verify_folder(tmp_path / "out")


def test_nothing_usable_is_an_error_and_no_finished_folder(tmp_path: Path, run_prepare: Prepare) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xff")
    with pytest.raises(DataError, match=r"not one usable document in 1 files .*1 invalid_utf8"):
        run_prepare([tmp_path / "a.txt"], tmp_path / "out")
    with pytest.raises(DataError, match="does not exist"):
        PackedDataset(tmp_path / "out")


@pytest.mark.slow
def test_error_in_a_worker_process_is_the_same_one_line(tmp_path: Path, run_prepare: Prepare) -> None:
    for name in ("a.parquet", "b.parquet"):
        (tmp_path / name).write_bytes(b"no parquet")
    with pytest.raises(DataError, match=r"a.parquet cannot be read as parquet"):
        run_prepare([tmp_path / "*.parquet"], tmp_path / "out", num_workers=2)


@pytest.mark.slow
def test_launcher_from_another_folder(corpus: Path, tiny_tokenizer: Path, tmp_path: Path, run_prepare: Prepare) -> None:
    run_prepare([corpus], tmp_path / "expected")
    listed = tmp_path / "list.txt"
    listed.write_text(f"{corpus.name}/*.txt\n{corpus.name}/deep\n")
    command = _command(corpus, tiny_tokenizer, Path(os.path.relpath(tmp_path / "out", corpus.parent)))
    command[command.index("--inputs") + 1 : command.index("--tokenizer")] = [f"@{listed}", f"{corpus.name}/deep"]
    done = subprocess.run(command, cwd=corpus.parent, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert content(tmp_path / "out") == content(tmp_path / "expected")
    assert "12 documents" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--inputs", "/no/such/place"], "error: --inputs /no/such/place: no such file or folder"),
        (["--seq_len", "1"], "error: --seq_len: must be >= 2, found 1"),
        (["--seq_length", "9"], "seq_length"),
        (["--packing", "best"], "packing"),
        (["--max_doc_tokens", "0"], "error: --max_doc_tokens: must be >= 1"),
        (["--sources", "a.yaml"], "error: give either --inputs or --sources, and not both"),
        (["--mpi", "true", "--num_workers", "2"], "error: --num_workers: with --mpi the number of ranks decides"),
    ],
)
def test_launcher_names_the_wrong_flag_in_one_line(
    corpus: Path, tiny_tokenizer: Path, tmp_path: Path, flags: list[str], message: str
) -> None:
    command = _command(corpus, tiny_tokenizer, tmp_path / "out", *flags)
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_launcher_help_needs_nothing_heavy() -> None:
    program = (
        "import runpy, sys\n"
        f"sys.argv = [{str(LAUNCHER)!r}, '--help']\n"
        "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "except SystemExit: pass\n"
        "print('HEAVY', sorted({'torch', 'transformers', 'pyarrow', 'tokenizers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd="/", capture_output=True, text=True, timeout=60)
    assert "--seq_len" in done.stdout and "HEAVY []" in done.stdout, done.stdout + done.stderr


def test_preparing_does_not_import_torch(corpus: Path, tiny_tokenizer: Path) -> None:
    program = "import sys, data_prep.prepare, data_prep.verify, pipeline.data.loader; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], cwd="/", capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "False", done.stdout + done.stderr


def test_reading_settings_are_part_of_the_manifest(corpus: Path, tmp_path: Path, run_prepare: Prepare) -> None:
    manifest = run_prepare([corpus], tmp_path / "out")
    assert manifest.packing["method"] == "concat" and manifest.packing["eos_token_id"] == 1
    assert manifest.sources[0]["reading"]["extensions"] == [".txt", ".jsonl"]
