"""The folder of an evaluation and the report's files, rendered by the real code."""

import json
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.evaluation.drawing import draw
from pipeline.evaluation.evictions import NOTHING, describe_evictions, summarise_evictions
from pipeline.evaluation.records import EvaluationFolder
from pipeline.evaluation.report import SuiteResult, write_report
from pipeline.evaluation.suite import Picture, Section, Table, Tile
from pipeline.evaluation.training_curve import TrainingCurve, read_training_curve
from pipeline.evaluation.writing import write_atomically

REPOSITORY = Path(__file__).resolve().parents[2]
FACTS = {"Weights": {"model": "runs/demo/adapter", "sha256": "ab" * 32}, "Machine": {"processes": "2"}}
EVICTED = {"min": 0, "mean": 0.75, "max": 3, "share": 0.375}


class Lengths:
    """A suite of which only the end is needed."""

    name = "lengths"

    def summarise(self, records):
        return {"total": sum(record["length"] for record in records.values())}

    def sections(self, summary, records):
        with draw(2.0) as ((axes,), drawing):
            axes.plot([record["length"] for record in records.values()])
        rows = [[key, str(record["length"])] for key, record in records.items()]
        tables = [Table(["file", "length"], rows, "files", [1]), Table(["file"], [["x"]], "folded", is_folded=True)]
        texts = [[("<i>word</i>", "rgb(1, 2, 3)", 'a "title"')]]
        tiles = [Tile(str(summary["total"]), "in all")]
        return [Section("Some lengths", "lead", tiles, tables, [Picture(drawing.png, "alt")], texts, "note")]


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluation")
    records = {f"lib/<b>{i}</b>.py": {"length": i, "evicted": [i, 0]} for i in range(4)}
    curve = TrainingCurve(list(range(1, 61)), [0.5 / i for i in range(1, 61)], "training loss")
    return folder, records, write_report(folder, [SuiteResult(Lengths(), records)], FACTS, curve)


def test_page_is_self_contained_and_escaped(report) -> None:
    page = (report[0] / "report.html").read_text()
    assert page.count('src="data:image/png;base64,') == 2
    assert not re.search(r'(src|href)="(?!data:|#)', page) and "<script" not in page
    assert "&lt;b&gt;1&lt;/b&gt;" in page and "<b>1</b>" not in page
    assert "&lt;i&gt;word&lt;/i&gt;" in page and 'title="a &#34;title&#34;"' in page
    assert 'name="viewport"' in page and "ab" * 32 in page


@pytest.mark.parametrize(
    ("counts", "told"),
    [
        ({0: 999, 7: 1}, "0 to 7 tokens, less than 1 on average; less than 1% of"),
        ({0: 249, 700: 1}, "0 to 700 tokens, 3 on average; less than 1% of"),
        ({0: 1, 7: 999}, "0 to 7 tokens, 7 on average; more than 99% of"),
        ({0: 1, 1: 1}, "0 to 1 tokens, less than 1 on average; 50% of"),
        ({7: 2}, "7 to 7 tokens, 7 on average; 100% of"),
    ],
)
def test_a_few_evictions_are_not_rounded_to_none_nor_many_to_all(counts, told) -> None:
    assert f"have evicted {told} the prompts evict any." in describe_evictions(summarise_evictions(counts))


def test_page_has_every_part_of_a_section_and_a_way_to_it(report) -> None:
    page = (report[0] / "report.html").read_text()
    assert 'href="#some-lengths"' in page and '<section id="some-lengths">' in page
    told = "have evicted 0 to 3 tokens, 1 on average; 38% of the prompts evict any. lead"
    for part in (told, "<b>6</b>", "<caption>files</caption>", "<summary>folded</summary>", 'alt="alt"', "note"):
        assert part in page
    assert '<tr class="emphasised"><th>lib/&lt;b&gt;1&lt;/b&gt;.py</th><td>1</td></tr>' in page


def test_the_terminal_has_every_section_but_what_is_folded(report) -> None:
    text = (report[0] / "summary.txt").read_text()
    for part in ("Some lengths", "lead", "6 ", "files", "lib/<b>1</b>.py", "Training"):
        assert part in text
    assert "folded" not in text and "note" not in text


def test_json_and_examples_read_back(report) -> None:
    folder, records, summary = report
    assert json.loads((folder / "report.json").read_text()) == summary == {"lengths": {"evicted": EVICTED, "total": 6}}
    assert next(iter(summary["lengths"])) == "evicted"
    lines = [json.loads(line) for line in (folder / "examples.jsonl").read_text().splitlines()]
    assert lines == [{"suite": "lengths", "key": key, **record} for key, record in records.items()]


def test_a_suite_that_measured_nothing_says_in_the_report_what_it_needs(tmp_path) -> None:
    class Unmeasured(Lengths):
        name = "unmeasured"

    results = [
        SuiteResult(Unmeasured(), {}, "it needs <x>"),
        SuiteResult(Lengths(), {"a": {"length": 3, "evicted": 0}}),
    ]
    nothing = dict.fromkeys(EVICTED, 0)
    assert write_report(tmp_path, results, FACTS, None) == {"lengths": {"evicted": nothing, "total": 3}}
    page = (tmp_path / "report.html").read_text()
    assert "<h2>Not measured: unmeasured</h2>" in page and "it needs &lt;x&gt;." in page
    assert page.index("Some lengths") < page.index("Not measured: unmeasured")
    assert "<h2>Nothing evicted: Some lengths</h2>" in page and f"{NOTHING} lead" in page


def folder_of(path, rank=0, window_size=96, **suites) -> EvaluationFolder:
    return EvaluationFolder(path, rank, {"weights": "w", "window_size": window_size}, suites)


def test_folder_keeps_records_of_all_ranks_and_lets_suites_be_added(tmp_path) -> None:
    first, second = folder_of(tmp_path, heldout={"data": 1}), folder_of(tmp_path, rank=1, heldout={"data": 1})
    first.write("heldout", "a", {"x": 1.5}, 0.25, 1.0)
    assert not second.has("heldout", "a")
    second.write("heldout", "b", {"x": 2}, 0.5, 2.0)
    assert not second.has("heldout", "a"), "a rank that does not report holds records of all the others"
    first.refresh()
    assert first.records == {("heldout", "a"): {"x": 1.5}, ("heldout", "b"): {"x": 2}}
    assert folder_of(tmp_path, rank=2).records == {("heldout", "a"): {}, ("heldout", "b"): {}}
    more = folder_of(tmp_path, needles={"seed": 0})
    assert more.has("heldout", "b") and not more.has("needles", "b")
    assert more.seconds == {"heldout": 0.75} and more.peak_rss_gib == 2.0
    known = json.loads((tmp_path / "settings.json").read_text())["suites"]
    assert known == {"heldout": {"data": 1}, "needles": {"seed": 0}}


def test_folder_refuses_other_settings(tmp_path) -> None:
    folder_of(tmp_path, heldout={"data": 1})
    with pytest.raises(UserError, match="window_size 96, this one has 128"):
        folder_of(tmp_path, window_size=128)
    with pytest.raises(UserError, match="heldout: data 1, this one has 2"):
        folder_of(tmp_path, heldout={"data": 2})


def test_folder_says_in_a_line_what_it_cannot_write(tmp_path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"--output .*file: Not a directory"):
        folder_of(tmp_path / "file")
    with pytest.raises(UserError, match="needles a gave numbers that are not finite"):
        folder_of(tmp_path).write("needles", "a", {"log_prob": float("nan")}, 0.25, 1.0)
    assert not folder_of(tmp_path).has("needles", "a")


DAMAGE = [
    b'{"suite": "heldout", "key": "b", "sec\x00\x00\n',
    b"\xff\xfe\n",
    b"\n",
    b"{}\n",
    b"[]\n",
    b'{"suite": "heldout", "key": "b", "seconds": 0.25, "peak_rss_gib": 1.0, "record": 3}\n',
]


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_line_is_named_and_its_unit_measured_again_without_it(tmp_path, damage) -> None:
    folder_of(tmp_path).write("heldout", "a", {"x": 1}, 0.25, 1.0)
    path = tmp_path / "records/rank-0.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole + damage + whole.replace(b'"a"', b'"c"'))
    for rank in (0, 1):
        with pytest.raises(UserError, match=r"line 2 of records/rank-0\.jsonl is damaged .*delete that line") as caught:
            folder_of(tmp_path, rank=rank)
        assert "\n" not in str(caught.value)
    path.write_bytes(whole)
    first = folder_of(tmp_path)
    path.write_bytes(whole + whole + damage)  # seen while rank 0 waits, beyond what it has read
    with pytest.raises(UserError, match=r"line 3 of records/rank-0\.jsonl is damaged"):
        first.refresh()
    path.write_bytes(whole + whole.replace(b'"a"', b'"c"'))
    assert folder_of(tmp_path).records.keys() == {("heldout", "a"), ("heldout", "c")}


@pytest.mark.parametrize("damage", [b"", b'{"weights": "w", "suites', b"\x00" * 20, b"[]", b'{"suites": {"a": 1}}'])
def test_damaged_settings_are_named_in_a_line(tmp_path, damage) -> None:
    folder_of(tmp_path).write("heldout", "a", {"x": 1}, 0.25, 1.0)
    (tmp_path / "settings.json").write_bytes(damage)
    with pytest.raises(UserError, match=r"--output .*: settings\.json is damaged") as caught:
        folder_of(tmp_path)
    assert "\n" not in str(caught.value)
    assert (tmp_path / "settings.json").read_bytes() == damage


@pytest.mark.parametrize("rank", [0, 1])
def test_records_without_their_settings_are_not_taken_for_this_evaluations(tmp_path, rank) -> None:
    folder_of(tmp_path, rank=2, heldout={"data": 1})
    settings = tmp_path / "settings.json"
    kept = settings.read_text()
    assert json.loads(kept)["suites"] == {"heldout": {"data": 1}}, "a rank that is not the first may measure first"
    (tmp_path / "records/rank-2.jsonl").write_text('{"suite": "heldout", "ke')  # is measured anew
    settings.unlink()
    folder_of(tmp_path, rank=rank, heldout={"data": 1}).write("heldout", "a", {"x": 1}, 0.25, 1.0)
    settings.unlink()
    with pytest.raises(UserError, match=r"^--output .* holds records but no settings\.json, so nothing tells .*put it"):
        folder_of(tmp_path, rank=1 - rank, window_size=480, needles={"data": 2})
    settings.write_text(json.dumps({**json.loads(kept), "suites": {}}))
    with pytest.raises(UserError, match=r"holds records of heldout but no settings of it .*choose another folder"):
        folder_of(tmp_path, rank=rank, heldout={"data": 2})
    settings.write_text(kept)
    assert folder_of(tmp_path, rank=rank, heldout={"data": 1}).has("heldout", "a")


@pytest.mark.parametrize("name", ["settings.json", "records/rank-0.jsonl", "records/rank-3.jsonl"])
def test_a_folder_in_a_files_place_is_named_in_a_line(tmp_path, name) -> None:
    (tmp_path / name).mkdir(parents=True)
    with pytest.raises(UserError, match=rf"^--output .*: {name} cannot be read \(Is a directory\).*choose another"):
        folder_of(tmp_path)


def test_a_file_that_cannot_be_written_whole_stays_as_it_was(tmp_path) -> None:
    write_atomically(tmp_path / "report.json", "before")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(UserError, match=r"--output .* cannot be written: File too large; what is measured is kept"):
            write_report(
                tmp_path,
                [SuiteResult(Lengths(), {"a": {"length": 3, "evicted": 3, "text": "x" * 200_000}})],
                FACTS,
                None,
            )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]
    assert (tmp_path / "report.json").read_text() == "before"


FILL_A_DISK = """
import subprocess, sys
from pathlib import Path
from pipeline.errors import UserError
from pipeline.evaluation.evictions import NOTHING
from pipeline.evaluation.records import EvaluationFolder

disk, rank = Path(sys.argv[1]), int(sys.argv[2])

def remount(options):
    subprocess.run(["mount", "-o", f"remount,{options}", disk], check=True)

def fill():
    folder = EvaluationFolder(disk / "eval", rank, {}, {"heldout": {}})
    for number in range(100):
        if not folder.has("heldout", str(number)):
            folder.write("heldout", str(number), {"x": "y" * 1500}, 0.25, 1.0)
    return folder

def refused(act):
    try:
        act()
    except UserError as error:
        print(error)
    else:
        raise SystemExit("nothing was refused")

refused(fill)
kept = (disk / f"eval/records/rank-{rank}.jsonl").read_bytes()
assert 5 < kept.count(b"\\n") < 100 and not kept.endswith(b"\\n"), "the disk was not full amid a line"
remount("size=1m,ro")
refused(fill)
remount("size=1m,rw")
fill()
assert len(fill().records) == 100
assert (disk / f"eval/records/rank-{rank}.jsonl").read_bytes().startswith(kept[:kept.rfind(b"\\n") + 1])
"""


@pytest.mark.parametrize("rank", [0, 1])
def test_a_full_disk_and_a_read_only_one_are_a_line_and_what_is_measured_is_kept(tmp_path, rank) -> None:
    inside = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs -o size=64k tmpfs "$0" && exec "$@"', tmp_path]
    tried = subprocess.run([*inside, "true"], capture_output=True, text=True)
    if tried.returncode != 0:
        pytest.skip(f"no file system can be mounted here: {tried.stderr.strip()}")
    fill = [*inside, sys.executable, "-c", FILL_A_DISK, tmp_path, str(rank)]
    done = subprocess.run(fill, capture_output=True, text=True, cwd=REPOSITORY, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    told = "what is measured is kept: free disk space or make the folder writable, and start again to go on"
    for line, reason in zip(
        done.stdout.splitlines(), ("No space left on device", "Read-only file system"), strict=True
    ):
        assert line == f"--output {tmp_path / 'eval'} cannot be written: {reason}; {told}"


@pytest.mark.parametrize("torn", [1, 10, -1])
def test_a_line_that_was_not_finished_is_measured_again(tmp_path, torn) -> None:
    folder = folder_of(tmp_path)
    for key in "ab":
        folder.write("heldout", key, {"x": key}, 0.25, 1.0)
    path = tmp_path / "records/rank-0.jsonl"
    whole = path.read_bytes()
    second = whole.index(b"\n") + 1
    path.write_bytes(whole[: second + torn] if torn > 0 else whole[:-1])
    assert folder_of(tmp_path, rank=1).records == {("heldout", "a"): {}}
    again = folder_of(tmp_path)
    again.write("heldout", "b", {"x": "b"}, 0.25, 1.0)
    assert path.read_bytes() == whole


def test_training_curve_comes_from_the_metrics_file(tmp_path) -> None:
    with pytest.raises(UserError, match=r"no metrics\.jsonl"):
        read_training_curve(tmp_path)
    rows = [{"step": 1, "loss/kl": 0.5}, {"step": 2, "train/skipped_steps": 1}, {"step": 3, "loss/kl": 0.25}]
    unfinished = '{"step": 4, "lo'  # by a run that goes on, or was killed
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + unfinished)
    curve = read_training_curve(tmp_path)
    assert (curve.steps, curve.losses) == ([1, 3], [0.5, 0.25])
