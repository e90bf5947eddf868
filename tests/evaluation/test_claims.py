"""Evaluations that meet in one folder: only one measures, and none's settings are lost or taken for another's."""

import errno
import fcntl
import json
import os
import signal
from functools import partial
from multiprocessing import get_context
from threading import Barrier, Event, Thread

import pytest

from pipeline.errors import UserError
from pipeline.evaluation.claims import claimed
from pipeline.evaluation.records import EvaluationFolder

OCCUPIED = r"^--output .*: another run is writing there \(process \d+ on .*\); wait for its end, or choose"


def measure(path, rank, window_size, *suites) -> EvaluationFolder:
    folder = EvaluationFolder(path, rank, {"window_size": window_size}, {suite: {"seed": 0} for suite in suites})
    for suite in suites:
        folder.write(suite, f"{rank} {window_size}", {"window_size": window_size}, 0.25, 1.0)
    return folder


def at_once(*calls) -> list[UserError | None]:
    """Runs each in a thread of its own, as nearly at the same instant as can be, and returns what was refused."""
    barrier, refusals = Barrier(len(calls)), [None] * len(calls)

    def run(number: int) -> None:
        barrier.wait()
        try:
            calls[number]()
        except UserError as error:
            refusals[number] = error

    threads = [Thread(target=run, args=(number,)) for number in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return refusals


def test_of_two_windows_that_start_at_once_one_is_refused(tmp_path) -> None:
    for number in range(20):
        path = tmp_path / str(number)
        refusals = at_once(*(partial(measure, path, 0, size, "heldout") for size in (96, 480)))
        assert [refusal is None for refusal in refusals].count(True) == 1
        size = json.loads((path / "settings.json").read_text())["window_size"]
        (line,) = (path / "records/rank-0.jsonl").read_text().splitlines()
        assert json.loads(line)["record"] == {"window_size": size}


def test_suites_that_are_added_at_once_are_all_kept(tmp_path) -> None:
    names = ("absorbed", "heldout", "needles", "probing")
    for number in range(10):
        path = tmp_path / str(number)
        assert at_once(*(partial(measure, path, rank, 96, name) for rank, name in enumerate(names))) == [None] * 4
        assert json.loads((path / "settings.json").read_text())["suites"].keys() == set(names)


def test_ranks_of_one_evaluation_may_start_in_any_order(tmp_path) -> None:
    for number in range(10):
        path = tmp_path / str(number)
        assert at_once(*(partial(measure, path, rank, 96, "heldout") for rank in range(4))) == [None] * 4
        assert len(measure(path, 0, 96).records) == 4
        assert sorted(file.name for file in path.iterdir()) == [".lock", "records", "settings.json"]


def hold(path, connection) -> None:
    with claimed(path, 0), claimed(path, 1):
        connection.send("held")
        signal.pause()


@pytest.mark.timeout(20)
def test_while_a_process_lives_its_rank_0_is_refused_and_other_ranks_wait(tmp_path, capsys) -> None:
    ours, theirs = get_context("fork").Pipe()
    holder = get_context("fork").Process(target=hold, args=(tmp_path, theirs), daemon=True)
    holder.start()
    assert ours.recv() == "held"
    with pytest.raises(UserError, match=OCCUPIED), claimed(tmp_path, 0):
        pass
    with claimed(tmp_path, 2):
        pass
    waiter = Thread(target=claim, args=(tmp_path, 1, done := Event()))
    waiter.start()
    assert not done.wait(0.3)
    os.kill(holder.pid, signal.SIGKILL)
    holder.join()
    waiter.join()
    assert done.is_set()
    assert capsys.readouterr().err == f"rank 1 waits for another process that is rank 1 in {tmp_path}\n"
    for _ in range(2):
        with claimed(tmp_path, 0):
            pass


def claim(path, rank, done) -> None:
    with claimed(path, rank):
        done.set()


def test_a_file_system_without_locks_serves(tmp_path, monkeypatch) -> None:
    def flock(descriptor, operation) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)
    with claimed(tmp_path, 0):
        assert measure(tmp_path, 0, 96, "heldout").has("heldout", "0 96")
    with pytest.raises(UserError, match="window_size 96, this one has 480"):
        measure(tmp_path, 0, 480, "heldout")
