"""Reads a suite's JSONL under --data_root, from the official zips or from unpacked folders.

Nothing is ever extracted, and a zip's members are asked for by the names the official archives use, so no name
inside an archive decides where anything is read or written. No dataset script and no remote code runs.
"""

import json
import logging
import shlex
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, TypeVar

from pipeline.data.shard_format import DataError
from pipeline.errors import UserError
from pipeline.evaluation.long_context.suite import BadRowError, LongContextExample, Row, Suite, TaskSpec

T = TypeVar("T")
logger = logging.getLogger(__name__)
NAMED = 6  # missing tasks that an error names; of more it gives the number


@dataclass(frozen=True)
class BadRow:
    """Line `line` (1 is the first) of a task's file, left out because of `reason`."""

    line: int
    reason: str


class TaskData:
    """A task's file on this machine. Iterating reads it from the start, one example in memory at a time.

    `bad_rows` are those of the last iteration, in order.
    """

    def __init__(self, task: TaskSpec, path: Path, member: str | None, advice: str) -> None:
        """`path` is the JSONL, or a zip with the JSONL `member`; `advice` ends errors of a damaged file."""
        self.task = task
        self.bad_rows: list[BadRow] = []
        self._path, self._member, self._advice = path, member, advice

    def __iter__(self) -> Iterator[LongContextExample]:
        """Examples in the file's order; raises as `read` does."""
        return self.read(self.task.read_row)

    def read(self, read_row: Callable[[str, str, Row], T]) -> Iterator[T]:
        """What `read_row` makes of each row, in the file's order; as `TaskSpec.read_row`, and as those it may refuse.

        Raises:
            DataError: the file cannot be read, or has no row of this task.
        """
        self.bad_rows.clear()
        num_examples = 0
        with self._open() as file:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                try:
                    example = read_row(f"{self.task.name}/{number}", self.task.name, _parse(line))
                except BadRowError as error:
                    self.bad_rows.append(BadRow(number, str(error)))
                    continue
                num_examples += 1
                yield example
        if num_examples == 0:
            first = f", the first because {self.bad_rows[0].reason}" if self.bad_rows else ""
            raise DataError(
                f"{self} has no row of {self.task.name}: {len(self.bad_rows)} rows are bad{first}; {self._advice}"
            )

    def warn_of_bad_rows(self) -> None:
        """Logs how many rows the last iteration left out, and why it did the first."""
        if self.bad_rows:
            first, num = self.bad_rows[0], len(self.bad_rows)
            logger.warning("%s: %d rows left out, line %d because %s", self, num, first.line, first.reason)

    def __str__(self) -> str:
        return str(self._path) if self._member is None else f"{self._member} in {self._path}"

    @contextmanager
    def _open(self) -> Iterator[IO[bytes]]:
        try:
            if self._member is None:
                with open(self._path, "rb") as file:
                    yield file
            else:
                with zipfile.ZipFile(self._path) as archive, archive.open(self._member) as file:
                    yield file
        except OSError as error:
            raise DataError(f"{self} cannot be read: {error.strerror or error}") from error
        except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
            raise DataError(f"{self} is damaged ({error}); {self._advice}") from error


def _parse(line: bytes) -> Row:
    try:
        row = json.loads(line)
    except ValueError as error:  # of the JSON or of its UTF-8
        raise BadRowError(f"it is not JSON ({error})") from error
    if not isinstance(row, dict):
        raise BadRowError(f"it must be a JSON object, found {type(row).__name__}")
    return row


def locate_tasks(suite: Suite, tasks: Sequence[TaskSpec], data_root: Path) -> list[TaskData]:
    """Finds the files of `tasks` under data_root/suite, before anything heavy is loaded.

    For each, the first there is of FILE, SET/FILE, and FILE or SET/FILE in SET.zip, where SET.zip is its archive.

    Raises:
        UserError: some are missing; names them and the command that fetches them.
        DataError: an archive is no zip.
    """
    folder, command = data_root / suite.name, fetch_command(suite.name, str(data_root))
    found = {task.name: _locate(task, folder, f"fetch it again: {command}") for task in tasks}
    missing = [name for name, data in found.items() if data is None]
    if missing:
        names = ", ".join(missing[:NAMED]) + (f" and {len(missing) - NAMED} more" if len(missing) > NAMED else "")
        raise UserError(
            f"--data_root {data_root} lacks {suite.title}'s {names} (looked in {folder}); get them with: {command}"
        )
    return [data for data in found.values() if data is not None]


def fetch_command(name: str, data_root: str) -> str:
    """The command line that fetches a benchmark."""
    return f"python launchers/run_eval.py --fetch {name} --data_root {shlex.quote(data_root)}"


def _locate(task: TaskSpec, folder: Path, advice: str) -> TaskData | None:
    set_name = Path(task.archive or "").stem
    names = [str(PurePosixPath(parent, task.file)) for parent in dict.fromkeys(("", set_name))]
    for name in names:
        if (folder / name).is_file():
            return TaskData(task, folder / name, None, advice)
    if task.archive is None or not (folder / task.archive).is_file():
        return None
    try:
        with zipfile.ZipFile(folder / task.archive) as archive:
            members = archive.namelist()
    except zipfile.BadZipFile as error:
        raise DataError(f"{folder / task.archive} is not a zip archive ({error}); {advice}") from error
    member = next((name for name in names if name in members), None)
    return None if member is None else TaskData(task, folder / task.archive, member, advice)
