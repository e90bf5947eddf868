"""lm-eval's own InfiniteBench: its prompts and metrics, which are not the official ones, on the official files.

As lm-eval ships them, these tasks do not load: they describe their columns in a way that `datasets` refuses, and ask
for splits that the hub's dataset does not have (lm-evaluation-harness, issue 3895). Here they get their rows from
--data_root.
"""

import re
from functools import partial
from pathlib import Path
from typing import Any

import datasets

from pipeline.evaluation.infinitebench.prompts import WITH_OPTIONS, options_of
from pipeline.evaluation.infinitebench.tasks import INFINITEBENCH
from pipeline.evaluation.long_context.data_files import TaskData, locate_tasks
from pipeline.evaluation.long_context.suite import BadRowError, Row, text_field

GROUP = "infinitebench"
LABEL = "lm-eval's variant"


def on_data_root(task: str, data_root: Path) -> dict[str, Any]:
    """lm-eval's task, such as "infinitebench_longbook_qa_en", with the rows of data_root/infinitebench.

    Returns:
        The task's name and its changes, as lm-eval takes them.

    Raises:
        UserError: its file is missing.
        DataError: an archive is damaged.
    """
    split = task.removeprefix(f"{GROUP}_")
    name = re.sub("_en$", "_eng", split)
    (data,) = locate_tasks(INFINITEBENCH, [spec for spec in INFINITEBENCH.tasks if spec.name == name], data_root)
    return {
        "task": task,
        "task_alias": f"{task} ({LABEL})",
        "dataset_path": INFINITEBENCH.repository,
        "dataset_kwargs": {},
        "custom_dataset": partial(_read, data, split),
    }


def _read(data: TaskData, split: str, **_: object) -> dict[str, datasets.Dataset]:
    rows = list(data.read(_read_row))
    data.warn_of_bad_rows()
    return {split: datasets.Dataset.from_list(rows)}


def _read_row(example_id: str, task: str, row: Row) -> Row:
    """The columns that lm-eval's tasks name, in the types that they name."""
    answer = row.get("answer")
    answers = answer if isinstance(answer, list) else [answer]
    if not answers or not all(isinstance(value, str | int | float) for value in answers):
        raise BadRowError(f"'answer' must be a text, a number or a list of them, found {str(answer)[:80]}")
    return {
        "id": example_id,
        "context": text_field(row, "context"),
        "input": text_field(row, "input"),
        "answer": [str(value) for value in answers],
        "options": options_of(row) if task in WITH_OPTIONS else [],
    }
