"""Two runs in one folder: of this host with real processes, of another by the file that it would write there."""

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread, Timer

import pytest

from pipeline import folder_claim
from pipeline.errors import UserError
from pipeline.folder_claim import OWNER_NAME, claimed_folder

REPOSITORY = Path(__file__).resolve().parents[1]
OCCUPIED = r"another run is writing there \(process {} on {}"
HOLDER = """
import signal, sys
from pathlib import Path
from pipeline.folder_claim import claimed_folder
with claimed_folder(Path(sys.argv[1])):
    print("held", flush=True)
    signal.pause()
"""
ELSEWHERE = {"host": "node7", "boot": "another", "pid": 4711, "pid_started": "1", "slurm_job": "77", "since": "noon"}


@contextmanager
def holder(output: Path):
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-c", HOLDER, str(output)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.kill()


def refuse_locks(descriptor: int, operation: int) -> None:
    raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))


@contextmanager
def touched(path: Path, every: float):
    """The sign of life of an owner on another host."""
    ended = Event()

    def touch() -> None:
        while not ended.wait(every):
            os.utime(path)

    thread = Thread(target=touch)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@pytest.mark.parametrize("has_locks", [True, False])
def test_while_a_process_has_it_others_are_refused_and_at_once_free_when_it_is_killed(tmp_path, monkeypatch, has_locks):
    output = tmp_path / "new" / "run"
    with holder(output) as process:
        if has_locks:
            name = OCCUPIED.format(process.pid, os.uname().nodename)
            with pytest.raises(UserError, match=name), claimed_folder(output):
                pass
        else:  # they would not have stood in the way, so that the record alone tells
            monkeypatch.setattr(fcntl, "flock", refuse_locks)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        began = time.monotonic()
        with claimed_folder(output) as claim:
            assert json.loads((output / OWNER_NAME).read_text())["pid"] == os.getpid() and claim.error() is None
        assert time.monotonic() - began < 2
    assert list(output.iterdir()) == []


def test_without_locks_the_living_process_of_this_host_is_seen(tmp_path, monkeypatch):
    monkeypatch.setattr(folder_claim, "STALE_S", 1.0)
    monkeypatch.setattr(folder_claim, "BEAT_S", 0.1)
    monkeypatch.setattr(fcntl, "flock", refuse_locks)
    with claimed_folder(tmp_path), pytest.raises(UserError, match=OCCUPIED.format(os.getpid(), "")):
        with claimed_folder(tmp_path):
            pass
    assert list(tmp_path.iterdir()) == []


def test_an_owner_on_another_host_is_refused_while_it_lives_and_then_taken_over(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(folder_claim, "STALE_S", 1.0)
    monkeypatch.setattr(folder_claim, "POLL_S", 0.05)
    record = tmp_path / OWNER_NAME
    record.write_text(json.dumps(ELSEWHERE))
    with touched(record, 0.2), pytest.raises(UserError, match=OCCUPIED.format(4711, "node7, Slurm job 77, since noon")):
        with claimed_folder(tmp_path):
            pass
    capsys.readouterr()
    os.utime(record)
    began = time.monotonic()
    with claimed_folder(tmp_path):
        assert 0.5 < time.monotonic() - began < 3
    assert "process 4711 on node7" in (said := capsys.readouterr().err) and said.count("\n") == 1
    record.write_text(json.dumps(ELSEWHERE))
    os.utime(record, (time.time() - 100,) * 2)
    began = time.monotonic()
    with claimed_folder(tmp_path):  # silent for long: no wait, and nothing to say
        assert time.monotonic() - began < 0.5
    assert capsys.readouterr().err == ""


def test_an_owner_on_another_host_that_ends_while_it_is_waited_for_leaves_the_folder_free(tmp_path, monkeypatch):
    monkeypatch.setattr(folder_claim, "POLL_S", 0.05)
    record = tmp_path / OWNER_NAME
    record.write_text(json.dumps(ELSEWHERE))
    ending = Timer(0.3, record.unlink)
    ending.start()
    began = time.monotonic()
    with claimed_folder(tmp_path) as claim:
        assert claim.error() is None and time.monotonic() - began < 5
    ending.join()


def test_who_was_taken_for_dead_learns_it_and_leaves_the_other_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(folder_claim, "BEAT_S", 0.05)
    record = tmp_path / OWNER_NAME
    with claimed_folder(tmp_path) as claim:
        before = record.stat().st_mtime_ns
        while record.stat().st_mtime_ns == before:  # it gives signs of life
            time.sleep(0.01)
        assert claim.error() is None
        record.write_text(json.dumps(ELSEWHERE))
        assert "was taken over by another run (process 4711 on node7" in str(claim.error())
    assert json.loads(record.read_text()) == ELSEWHERE


def test_claims_that_meet_at_one_instant_have_one_winner(tmp_path):
    for number in range(20):
        output, outcomes = tmp_path / str(number), []
        ready = Event()

        def claim(output=output, outcomes=outcomes, ready=ready) -> None:
            ready.wait()
            try:
                with claimed_folder(output):
                    outcomes.append("won")
                    while len(outcomes) < 4:
                        time.sleep(0.001)
            except UserError:
                outcomes.append("refused")

        threads = [Thread(target=claim) for _ in range(4)]
        for thread in threads:
            thread.start()
        ready.set()
        for thread in threads:
            thread.join()
        assert sorted(outcomes) == ["refused"] * 3 + ["won"]
        assert not list(output.glob("*"))


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"^--output .* cannot be written: Not a directory"):
        with claimed_folder(tmp_path / "file" / "run"):
            pass
