"""What users and disks get wrong: counted or refused with one line that names it, never a hang, never a loss."""

import ctypes
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from data_prep.verify import verify_folder
from pipeline.data.loader import PackedDataset
from pipeline.data.shard_format import DataError, Manifest

LAUNCHER = Path(__file__).parents[2] / "launchers" / "prepare.py"
Prepare = Callable[..., Manifest]


def test_unusable_documents_are_counted_by_file_and_reason(tmp_path: Path, run_prepare: Prepare) -> None:
    source = tmp_path / "in"
    source.mkdir()
    (source / "invalid.txt").write_bytes(b"abc\xff")
    (source / "nul.txt").write_bytes(b"abc\0def")
    (source / "empty.txt").write_bytes(b"")
    (source / "white.txt").write_bytes(b" \n\t \r\n")
    lines = ['{"text": "good"}', '{"text": ""}', '{"text": ', "{}", '{"text": null}', '{"text": "a\\u0000b"}']
    (source / "mixed.jsonl").write_text("\n".join(lines))
    manifest = run_prepare([source], tmp_path / "out")
    assert {(i["name"], reason): n for i in manifest.inputs for reason, n in i["dropped"].items()} == {
        ("invalid.txt", "invalid_utf8"): 1,
        ("nul.txt", "nul_bytes"): 1,
        ("empty.txt", "empty"): 1,
        ("white.txt", "empty"): 1,
        ("mixed.jsonl", "empty"): 1,
        ("mixed.jsonl", "malformed_json"): 1,
        ("mixed.jsonl", "missing_text_field"): 2,
        ("mixed.jsonl", "nul_bytes"): 1,
    }
    assert manifest.totals["documents"] == 1 and sum(manifest.dropped["documents"].values()) == 9
    verify_folder(tmp_path / "out")


def test_length_limits_count_what_they_leave_out(tmp_path: Path, run_prepare: Prepare) -> None:
    (tmp_path / "in.jsonl").write_text("".join(json.dumps({"text": "a b " * n}) + "\n" for n in (1, 10, 100, 1000)))
    everything = run_prepare([tmp_path / "in.jsonl"], tmp_path / "all", method="none")
    lengths = [PackedDataset(tmp_path / "all")[n].meta["documents"][0]["tokens"] for n in range(3)]
    manifest = run_prepare(
        [tmp_path / "in.jsonl"], tmp_path / "some", min_doc_tokens=lengths[1], max_doc_tokens=lengths[2]
    )
    assert manifest.dropped["documents"] == {"below_min_doc_tokens": 1, "above_max_doc_tokens": 1}
    assert manifest.totals["tokens"] == lengths[1] + lengths[2] < everything.totals["tokens"]


def _fifo(path: Path) -> None:
    os.mkfifo(path)


def _truncated_gz(path: Path) -> None:
    import gzip

    path.write_bytes(gzip.compress(b'{"text": "abc"}\n' * 1000)[:-20])


def _no_parquet(path: Path) -> None:
    path.write_bytes(b"PAR1 is not enough")


@pytest.mark.parametrize(
    ("name", "make", "message"),
    [
        ("pipe.txt", _fifo, r"--inputs .*pipe.txt"),
        ("a.jsonl.gz", _truncated_gz, r"a.jsonl.gz cannot be read as gzip-compressed jsonl"),
        ("a.parquet", _no_parquet, r"a.parquet cannot be read as parquet"),
        ("folder.txt", Path.mkdir, r"--inputs .*folder.txt: no file there ends in one of"),
    ],
)
def test_unusable_input_is_refused_by_name(
    tmp_path: Path, run_prepare: Prepare, name: str, make: Callable, message: str
) -> None:
    make(tmp_path / name)
    with pytest.raises(DataError, match=message):
        run_prepare([tmp_path / name], tmp_path / "out")


def _drop_root_override() -> None:
    """Makes root subject to file modes, as other users are."""
    for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
        ctypes.CDLL(None).prctl(24, capability)  # PR_CAPBSET_DROP


@pytest.mark.slow
def test_unreadable_file_is_refused_by_name(tiny_tokenizer: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("text")
    secret.chmod(0)
    command = [sys.executable, LAUNCHER, "--inputs", secret, "--tokenizer", tiny_tokenizer, "--output", tmp_path / "o"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, preexec_fn=_drop_root_override)
    assert done.returncode == 2, done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: ") and "secret.txt" in done.stderr.splitlines()[-1]
    assert "Permission denied" in done.stderr


def test_sample_longer_than_the_model_is_warned_about(
    tmp_path: Path, tiny_tokenizer: Path, run_prepare: Prepare, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for path in tiny_tokenizer.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "config.json").write_text('{"max_position_embeddings": 128}')
    (tmp_path / "a.txt").write_text("text")
    run_prepare([tmp_path / "a.txt"], tmp_path / "short", tokenizer=str(folder), seq_len=128)
    assert "warning" not in capsys.readouterr().err
    run_prepare([tmp_path / "a.txt"], tmp_path / "long", tokenizer=str(folder), seq_len=129)
    assert "--seq_len 129 is longer than the model's max_position_embeddings 128" in capsys.readouterr().err


def test_special_token_in_a_document_stays_text_unless_asked(tmp_path: Path, run_prepare: Prepare) -> None:
    (tmp_path / "a.txt").write_text("one <|end|> two")
    run_prepare([tmp_path / "a.txt"], tmp_path / "plain")
    run_prepare([tmp_path / "a.txt"], tmp_path / "special", special_tokens_in_text="special")
    plain, special = (PackedDataset(tmp_path / name)[0].input_ids for name in ("plain", "special"))
    assert (plain == 1).sum() == 1 and plain[-1] == 1  # the appended end of text
    assert (special == 1).sum() == 2


@pytest.mark.slow
def test_a_long_document_is_streamed_and_packed_like_a_short_one(
    tmp_path: Path, tiny_tokenizer: Path, run_prepare: Prepare
) -> None:
    text = "".join(f"line {n} é\n" for n in range(450_000))  # beyond the 4 MiB that are read at once
    assert len(text.encode()) > 5 << 20
    (tmp_path / "long.txt").write_text(text)
    (tmp_path / "row.jsonl").write_text(json.dumps({"text": text}))
    ids = []
    for name in ("long.txt", "row.jsonl"):
        manifest = run_prepare([tmp_path / name], tmp_path / f"{name}.out", seq_len=4096, method="best_fit")
        dataset = PackedDataset(tmp_path / f"{name}.out")
        samples = [dataset[n] for n in range(len(dataset))]
        pieces = sorted((piece["start"], s.input_ids) for s in samples for piece in s.meta["documents"])
        ids.append(np.concatenate([tokens for _, tokens in pieces]))
        assert manifest.totals["cut_documents"] == 1 and manifest.totals["text_bytes"] == len(text.encode())
    np.testing.assert_array_equal(*ids)


@pytest.mark.parametrize("packing", ["best_fit", "concat"])
def test_a_wrong_field_is_named_early_and_the_corrected_run_goes_on(
    tmp_path: Path, run_prepare: Prepare, packing: str
) -> None:
    (tmp_path / "in.jsonl").write_text('{"content": "text"}\n' * 3)
    with pytest.raises(DataError, match=r"in.jsonl: none of its rows has the field 'text'; set --text_field"):
        run_prepare([tmp_path / "in.jsonl"], tmp_path / "out", method=packing)
    assert run_prepare([tmp_path / "in.jsonl"], tmp_path / "out", text_field="content").totals["documents"] == 3


def test_no_usable_document_leaves_a_folder_that_other_settings_can_use(tmp_path: Path, run_prepare: Prepare) -> None:
    (tmp_path / "in.jsonl").write_text('{"text": "short"}\n')
    with pytest.raises(DataError, match=r"not one usable document in 1 files \(dropped: 1 below_min_doc_tokens\)"):
        run_prepare([tmp_path / "in.jsonl"], tmp_path / "out", min_doc_tokens=1000)
    assert run_prepare([tmp_path / "in.jsonl"], tmp_path / "out").totals["documents"] == 1


def test_input_without_a_row_is_refused(tmp_path: Path, run_prepare: Prepare) -> None:
    (tmp_path / "in.jsonl").write_text("")
    with pytest.raises(DataError, match="the 1 input files hold no row and no text"):
        run_prepare([tmp_path / "in.jsonl"], tmp_path / "out")


def test_output_among_the_inputs_is_refused(tmp_path: Path, run_prepare: Prepare) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "text"}\n')
    run_prepare([tmp_path / "a.jsonl"], tmp_path / "out")
    with pytest.raises(DataError, match=r"--output .*out holds the input .*; name a folder apart"):
        run_prepare([tmp_path / "**"], tmp_path / "out")


@pytest.mark.parametrize("content", ['{"a', "{}", "[]"])
def test_damaged_plan_is_one_line(tmp_path: Path, run_prepare: Prepare, content: str) -> None:
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "out" / ".units").mkdir(parents=True)
    (tmp_path / "out" / ".units" / "plan.json").write_text(content)
    with pytest.raises(DataError, match=r"plan.json is damaged or of another version .*; delete .*out and run again"):
        run_prepare([tmp_path / "a.txt"], tmp_path / "out")
