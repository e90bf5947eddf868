"""What a long-context benchmark is made of: a suite of tasks, each with its examples, prompts and metric."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Reference = str | int | float
Row = dict[str, Any]


class BadRowError(ValueError):
    """A row of a data file that lacks what its task needs; the message names the field and what was found."""


@dataclass(frozen=True)
class LongContextExample:
    """One question over one long context.

    `id` is "task/line", unique in a suite. `prompt` is whole: truncate it before generating. `references` are the
    right answers, in the order and JSON types of the data. `keywords` is the text that LV-Eval's gate looks for,
    None where the set has none.
    """

    id: str
    task: str
    prompt: str
    references: tuple[Reference, ...]
    keywords: str | None = None


@dataclass(frozen=True)
class TaskSpec:
    """One task of a suite.

    `file` holds its rows ("name.jsonl"); `archive` is the zip of the official repository that has this file, None
    where the repository has the file itself. `read_row` maps id, task and row to an example and raises BadRowError.
    `score` maps a generated text and its example to 0 .. 1; a task's score is the mean. `metric` names it.
    """

    name: str
    file: str
    archive: str | None
    max_new_tokens: int
    metric: str
    read_row: Callable[[str, str, Row], LongContextExample]
    score: Callable[[str, LongContextExample], float]


@dataclass(frozen=True)
class Suite:
    """A benchmark: its official dataset repository on the Hugging Face hub and its tasks.

    `decodes_halves_apart`: how the official code turns the two halves of a truncated prompt back into text.
    """

    name: str
    title: str
    repository: str
    decodes_halves_apart: bool
    tasks: tuple[TaskSpec, ...]

    @property
    def files(self) -> tuple[str, ...]:
        """Names of the repository's files that hold the tasks."""
        return tuple(dict.fromkeys(task.archive or task.file for task in self.tasks))


def text_field(row: Row, name: str) -> str:
    """The row's string `name`.

    Raises:
        BadRowError: it has none.
    """
    value = row.get(name)
    if not isinstance(value, str):
        raise BadRowError(f"{name!r} must be a string, found {type(value).__name__ if name in row else 'nothing'}")
    return value
