"""The folder of an evaluation: what determines its numbers, and one line for everything that was measured.

    settings.json             weights, window, dtype; data and settings of each suite; on disk before any record
    records/rank-R.jsonl      one line a unit, on disk before the next begins; one file for each process
    examples.jsonl            all of them in order, written at the end, with report.json and report.html

So an evaluation that was stopped goes on with what is missing, with any number of processes, suites and variants may be
added to it, and processes need no other way to hand results to each other.
"""

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.evaluation.claims import make_folder
from pipeline.evaluation.settings import settle
from pipeline.evaluation.suite import Record
from pipeline.evaluation.writing import writes_to
from pipeline.folder_claim import FolderClaim


class EvaluationFolder:
    """`--output` of an evaluation; see the module's docstring.

    `records`: by suite and key; rank 0, which reports, has what they hold, the others know that they are there.
    `seconds`: spent on each suite, by all processes. `peak_rss_gib`: of any process.

    Args:
        common: what determines all numbers; `suites`: what determines those of each, by suite.
        claim: of the folder, on rank 0; None leaves two evaluations apart to the caller.

    Raises:
        UserError: it cannot be written or read, is damaged, or holds the records of an evaluation with other settings.
    """

    def __init__(
        self,
        path: Path,
        rank: int,
        common: dict[str, Any],
        suites: dict[str, dict[str, Any]],
        claim: FolderClaim | None = None,
    ) -> None:
        self.path = path
        self._claim = claim
        self._is_first = rank == 0
        self._folder = make_folder(path)
        self._own = self._folder / f"rank-{rank}.jsonl"
        self._read_up_to: dict[Path, int] = {}
        self.records: dict[tuple[str, str], Record] = {}
        self.seconds: Counter[str] = Counter()
        self.peak_rss_gib = 0.0
        self.refresh()
        settle(path, common, suites, measured=self.seconds.keys())
        with writes_to(path):
            self._mend()

    def _mend(self) -> None:
        """Cuts off a line that this rank had not finished when it was stopped. Fails where `write` is going to."""
        with self._own.open("a+b") as file:
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)

    def check_claim(self) -> None:
        """Ends an evaluation that another one, elsewhere, has taken for dead and goes on with.

        Raises:
            UserError: there is one.
        """
        if self._claim is not None:
            self._claim.check()

    def has(self, suite: str, key: str) -> bool:
        return (suite, key) in self.records

    def write(self, suite: str, key: str, record: Record, seconds: float, peak_rss_gib: float) -> None:
        """Adds one line, on disk on return, with what it took.

        Raises:
            UserError: it cannot be written, holds numbers that are not finite, or another evaluation has the folder.
        """
        entry = {"suite": suite, "key": key, "seconds": round(seconds, 3), "peak_rss_gib": round(peak_rss_gib, 3)}
        try:
            line = json.dumps({**entry, "record": record}, allow_nan=False) + "\n"
        except ValueError as error:
            raise UserError(
                f"--model: {suite} {key} gave numbers that are not finite; its weights may hold NaN, or --dtype is too "
                f"narrow for them"
            ) from error
        self.check_claim()
        with writes_to(self.path), self._own.open("a", encoding="utf-8") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
        if self._is_first:
            self.refresh()

    def refresh(self) -> None:
        """Takes in what all ranks have written by now.

        Raises:
            UserError: a file cannot be read, or a whole line is damaged.
        """
        for path in sorted(self._folder.glob("rank-*.jsonl")):
            start = self._read_up_to.get(path, 0)
            if new := self._read_from(path, start):
                *lines, unfinished = new.split(b"\n")
                for number, line in enumerate(lines):
                    try:
                        self._take(json.loads(line))
                    except (ValueError, KeyError, TypeError) as error:
                        raise UserError(self._describe_damage(path, start, number, error)) from error
                self._read_up_to[path] = start + len(new) - len(unfinished)

    def _read_from(self, path: Path, start: int) -> bytes:
        try:
            with path.open("rb") as file:
                file.seek(start)
                return file.read()
        except OSError as error:
            raise UserError(
                f"--output {self.path}: {path.relative_to(self.path)} cannot be read ({error.strerror}); put right "
                f"what is there, or choose another folder"
            ) from error

    def _take(self, entry: dict[str, Any]) -> None:
        record = {**entry["record"]}
        self.seconds[entry["suite"]] += entry["seconds"]
        self.peak_rss_gib = max(self.peak_rss_gib, entry["peak_rss_gib"])
        self.records[entry["suite"], entry["key"]] = record if self._is_first else {}

    def _describe_damage(self, path: Path, start: int, number: int, error: Exception) -> str:
        with path.open("rb") as file:
            line = file.read(start).count(b"\n") + number + 1
        return (
            f"--output {self.path}: line {line} of {path.relative_to(self.path)} is damaged "
            f"({type(error).__name__}: {error}); delete that line, and start again to measure its unit anew"
        )
