"""The folder of an evaluation: what determines its numbers, and one line for everything that was measured.

    settings.json             weights, window, dtype; data and settings of each suite
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
from pipeline.evaluation.suite import Record


def write_atomically(path: Path, text: str) -> None:
    """Writes `text` so that `path` is absent or whole at every instant, and on disk on return."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    with scratch.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    scratch.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    os.fsync(folder)
    os.close(folder)


class EvaluationFolder:
    """`--output` of an evaluation; see the module's docstring.

    `records`: by suite and key; rank 0, which reports, has what they hold, the others know that they are there.
    `seconds`: spent on each suite, by all processes. `peak_rss_gib`: of any process.

    Args:
        common: what determines all numbers; `suites`: what determines those of each, by suite.

    Raises:
        UserError: it cannot be written, or holds the records of an evaluation with other settings.
    """

    def __init__(self, path: Path, rank: int, common: dict[str, Any], suites: dict[str, dict[str, Any]]) -> None:
        self.path = path
        self._is_first = rank == 0
        self._folder = path / "records"
        self._own = self._folder / f"rank-{rank}.jsonl"
        self._read_up_to: dict[Path, int] = {}
        self.records: dict[tuple[str, str], Record] = {}
        self.seconds: Counter[str] = Counter()
        self.peak_rss_gib = 0.0
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"--output {path}: {error.strerror}; name a folder that can be written") from error
        known = path / "settings.json"
        found = {"suites": {}, **(json.loads(known.read_text()) if known.is_file() else {})}
        wanted = json.loads(json.dumps({**common, "suites": suites}))
        if known.is_file():
            self._check("", {name: value for name, value in found.items() if name != "suites"}, wanted)
            for name in found["suites"].keys() & wanted["suites"].keys():
                self._check(f"{name}: ", found["suites"][name], wanted["suites"][name])
        merged = {**wanted, "suites": found["suites"] | wanted["suites"]}
        if rank == 0 and merged != found:
            write_atomically(known, json.dumps(merged, indent=1) + "\n")
        self._mend()
        self.refresh()

    def _check(self, suite: str, found: dict[str, Any], wanted: dict[str, Any]) -> None:
        for name in wanted.keys() - {"suites"}:
            if found.get(name) != wanted[name]:
                raise UserError(
                    f"--output {self.path} holds an evaluation with {suite}{name} {found.get(name)}, this one has "
                    f"{wanted[name]}; choose another folder"
                )

    def _mend(self) -> None:
        """Cuts off a line that this rank had not finished when it was stopped."""
        if self._own.is_file():
            content = self._own.read_bytes()
            whole = content.rfind(b"\n") + 1
            if whole < len(content):
                os.truncate(self._own, whole)

    def has(self, suite: str, key: str) -> bool:
        return (suite, key) in self.records

    def write(self, suite: str, key: str, record: Record, seconds: float, peak_rss_gib: float) -> None:
        """Adds one line, on disk on return, with what it took."""
        entry = {"suite": suite, "key": key, "seconds": round(seconds, 3), "peak_rss_gib": round(peak_rss_gib, 3)}
        try:
            line = json.dumps({**entry, "record": record}, allow_nan=False) + "\n"
        except ValueError as error:
            raise UserError(
                f"--model: {suite} {key} gave numbers that are not finite; its weights may hold NaN, or --dtype is too "
                f"narrow for them"
            ) from error
        with self._own.open("a", encoding="utf-8") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
        if self._is_first:
            self.refresh()

    def refresh(self) -> None:
        """Takes in what all ranks have written by now."""
        for path in sorted(self._folder.glob("rank-*.jsonl")):
            start = self._read_up_to.get(path, 0)
            if path.stat().st_size > start:
                with path.open("rb") as file:
                    file.seek(start)
                    new = file.read()
                new = new[: new.rfind(b"\n") + 1]
                self._read_up_to[path] = start + len(new)
                for line in new.splitlines():
                    entry = json.loads(line)
                    self.records[entry["suite"], entry["key"]] = entry["record"] if self._is_first else {}
                    self.seconds[entry["suite"]] += entry["seconds"]
                    self.peak_rss_gib = max(self.peak_rss_gib, entry["peak_rss_gib"])
