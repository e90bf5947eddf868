"""`python -m data_prep.stats` against figures counted by hand and by plain lists."""

import json
import os
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from data_prep.length_tally import Lengths
from data_prep.stats import collect_stats, main
from data_prep.verify import verify_folder
from pipeline.data.shard_format import DataError
from tests.data_prep.hand_packed import pack, whole, write_folder

SEQ_LEN = 400


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Text: documents of 500 (cut), 300, 129 and 128 tokens. Chat: two of 100, 50 tokens of each supervised."""
    folder = tmp_path_factory.mktemp("packed")
    long = [whole("long", 500, start=0, end=400), whole("long", 500, start=400, end=500)]
    mask = np.repeat(np.array([0, 1, 0, 1], np.uint8), 50)
    rest, first = pack([long[1], whole("b", 300)]), pack([long[0]])  # the later piece lies in the earlier sample
    text = [rest, first, pack([whole("c", 129), whole("d", 128)])]
    chat = [pack([whole("e", 100), whole("f", 100)], loss_mask=mask)]
    dropped = {"files": {"excluded": 1}, "documents": {"not_utf8": 2}, "tokens": {}}
    sources = {"text": {"weight": 3.0, "dropped": dropped}, "chat": {"weight": 1.0}}
    write_folder(folder, [(0, "text", text), (1, "chat", chat)], seq_len=SEQ_LEN, sources=sources)
    verify_folder(folder)
    return folder


def test_figures_of_each_source_and_of_all(folder: Path) -> None:
    stats = collect_stats(folder)
    text, chat = stats["sources"]
    assert (text["name"], text["weight"], text["samples"], text["tokens"], text["documents"]) == ("text", 3, 3, 1057, 4)
    assert (text["cut_documents"], text["cut_share"], text["supervised_share"]) == (1, 0.25, None)
    assert text["packing_efficiency"] == 1057 / 1200 and text["bytes_per_token"] == 3
    assert text["share_of_tokens"] == 1057 / 1257 and chat["share_of_tokens"] == 200 / 1257
    assert (chat["supervised_tokens"], chat["supervised_share"]) == (100, 0.5)
    assert text["document_lengths"]["quantiles"] == {"p5": 128, "p50": 129, "p95": 500, "max": 500}
    assert text["document_lengths"]["mean"] == 1057 / 4 and text["piece_lengths"]["number"] == 5
    assert text["dropped"]["documents"] == {"not_utf8": 2} and stats["total"]["dropped"]["files"] == {"excluded": 1}
    assert stats["total"]["supervised_share"] == 100 / 1257 and stats["total"]["documents"] == 6


def test_documents_longer_than_windows(folder: Path) -> None:
    total = collect_stats(folder)["total"]
    assert total["document_lengths"]["longer_than"] == [
        {"window": 128, "number": 3, "tokens": 929},
        {"window": 256, "number": 2, "tokens": 800},
    ]
    assert total["piece_lengths"]["longer_than"] == [
        {"window": 128, "number": 3, "tokens": 829},
        {"window": 256, "number": 2, "tokens": 700},
    ]


def test_samples_by_how_full_they_are(folder: Path) -> None:
    filled = {place["from"]: place["number"] for place in collect_stats(folder)["total"]["sample_fill"]}
    assert {share: number for share, number in filled.items() if number} == {0.5: 1, 0.6: 1, 1.0: 2}


@given(lengths=st.lists(st.integers(1, 5000), min_size=1, max_size=60))
def test_lengths_agree_with_plain_lists(lengths: list[int]) -> None:
    counted = Lengths()
    counted.counts.update(lengths)
    for row in counted.longer_than():
        longer = [n for n in lengths if n > row["window"]]
        assert (row["number"], row["tokens"]) == (len(longer), sum(longer)) and longer
    assert len(counted.longer_than()) == sum(max(lengths) > 1 << k for k in range(7, 14))
    for place in counted.histogram():
        inside = [n for n in lengths if place["from"] <= n < place["to"]]
        assert (place["number"], place["tokens"]) == (len(inside), sum(inside))
    assert sum(place["number"] for place in counted.histogram()) == len(lengths)
    quantiles = counted.quantiles()
    assert quantiles["max"] == max(lengths) and quantiles["p50"] == statistics.median_low(lengths)


def test_results_lie_beside_the_folder_and_leave_it_as_it_is(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = shutil.copytree(folder, tmp_path / "data")
    monkeypatch.chdir(copy)
    for _ in range(2):
        assert main(["."]) == 0
        out = capsys.readouterr().out
        results = tmp_path / "data-stats"
        assert {path.name for path in results.iterdir()} == {"stats.json", "stats.png"}
        assert json.loads((results / "stats.json").read_text()) == collect_stats(copy)
        assert Image.open(results / "stats.png").size == (1210, 825)
    verify_folder(copy)
    assert "text: documents dropped: 2 not_utf8" in out and "text: files dropped: 1 excluded" in out
    rows = [line.split() for line in out.splitlines()]
    assert ["text", "3.1", "KiB", "3", "1,057", "4", "1", "0"] in rows
    assert ["chat", "1", "15.9%", "3.00", "50.00%", "0.00%", "50.0%"] in rows
    assert ["256", "2", "33.3%", "2", "55.7%"] in rows


@pytest.mark.parametrize("output", [".", "below/it", "../data"])
def test_output_inside_the_data_folder_is_refused(
    folder: Path, tmp_path: Path, output: str, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = shutil.copytree(folder, tmp_path / "data")
    assert main([str(copy), "--output", str(copy / output)]) == 1
    assert "lies in the data folder" in capsys.readouterr().err
    verify_folder(copy)


@pytest.mark.parametrize("number", [0, 1, 12])
def test_many_sources_and_odd_folders_can_be_drawn(tmp_path: Path, number: int) -> None:
    """No sample at all, one token, more sources than there are colours."""
    units = [(n, f"$source_{n}^$", [pack([whole(f"d{n}", 1 + n * 20)])]) for n in range(number)]
    sources = {f"$source_{n}^$": {} for n in range(max(number, 1))}
    write_folder(tmp_path / "data", units, seq_len=SEQ_LEN, sources=sources)
    assert main([str(tmp_path / "data"), "--output", str(tmp_path / "out")]) == 0
    assert Image.open(tmp_path / "out" / "stats.png").size == (1210, 825)


def test_unreadable_sample_is_named(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "data")
    path = copy / "shard-00000-000.tar"
    raw = path.read_bytes()
    for position, value in ((0, b"\xff"), (raw.index(b'"start"') + 1, b"x"), (raw.index(b'{"documents'), b"[")):
        path.write_bytes(raw[:position] + value + raw[position + 1 :])
        with pytest.raises(DataError, match=r"shard-00000-000.tar: sample 0 cannot be read .*data_prep.verify"):
            collect_stats(copy)


@pytest.mark.slow
def test_command_exits_with_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "data_prep.stats", str(tmp_path / "nowhere")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=tmp_path, env=dict(os.environ))
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and "does not exist" in done.stderr
