"""Loads lm-eval's tasks: with changes if asked for, each once, and with one line for what keeps it from loading."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from lm_eval.api.group import Group
from lm_eval.api.task import Task
from lm_eval.tasks import TaskManager
from lm_eval.tasks._index import Kind

from pipeline.errors import UserError
from pipeline.evaluation.long_context.rouge_l import mend_recursion

LmEvalTask = str | dict[str, Any] | Task | Group


class Tasks(TaskManager):
    """Takes tasks with changes, and says in one line what keeps a task from being loaded."""

    def load(self, task_list: Any) -> Any:
        """As lm-eval's; {"task": NAME, ...} with the name of a task is that task with these changes.

        What a group among them brings is loaded with it alone: a wildcard such as `longbench*` means both.

        Raises:
            UserError: no such task, a package it needs is missing, or its data is not on this machine.
        """
        mend_recursion()
        specs = task_list if isinstance(task_list, list) else [task_list]
        unknown = [s for s in specs if isinstance(s, str) and s not in self.all_tasks and not Path(s).is_file()]
        if unknown:
            raise no_such_task(unknown[0])
        brought = self._brought([spec for spec in specs if isinstance(spec, str)])
        built: list[Task | Group] = []
        for spec in specs:
            if isinstance(spec, str) and spec in brought:
                continue
            try:
                items = self._build(spec)
            except ImportError as error:
                raise UserError(f"--tasks {_name(spec)}: a package is missing: {_one_line(error)}") from error
            except OSError as error:  # the hub's and the network's errors are OSErrors
                raise UserError(
                    f"--tasks {_name(spec)}: its data cannot be loaded ({_one_line(error)}); run it once where the "
                    f"Hugging Face hub can be reached, with the same HF_HOME, or name local files (dataset_path)"
                ) from error
            built += [item for item in items if isinstance(item, Group) or item.task_name not in brought]
        try:
            return super().load(built)
        except ValueError as error:  # a task in two groups
            raise UserError(f"--tasks {','.join(map(_name, specs))}: {_one_line(error)}") from error

    def _build(self, spec: LmEvalTask) -> Sequence[Task | Group]:
        if isinstance(spec, dict) and spec.get("task") in self.all_tasks:
            spec = {"group": "changed", "task": [spec]}  # lm-eval changes members of groups only
            return list(super().load(spec)["tasks"].values())
        if isinstance(spec, Task | Group):
            return [spec]
        loaded = super().load(spec)
        named = loaded["groups"].get(spec.get("group") if isinstance(spec, dict) else spec)
        return [named] if named is not None else list(loaded["tasks"].values())

    def _brought(self, names: Sequence[str]) -> set[str]:
        """Names of the tasks, groups and tags that come with another group among `names`."""
        members = {name: self._members(name) for name in names}
        brought = set[str]().union(*members.values())
        tasks = {name: found.intersection(self.all_subtasks) for name, found in members.items() if found}
        brought |= {name for name, own in tasks.items() if any(own < others for others in tasks.values())}
        return brought | {name for name in names if name in self.all_tags and self.task_index[name].tags <= brought}

    def _members(self, name: str) -> set[str]:
        """Names of the tasks and groups in a group, and in the groups in it; none for a task or a tag."""
        entry = self.task_index.get(name)
        listed = entry.cfg.get("task") if entry is not None and entry.kind == Kind.GROUP and entry.cfg else None
        return self._names_below(listed) if isinstance(listed, list) else set()

    def _names_below(self, listed: Iterable[str | dict[str, Any]]) -> set[str]:
        found = set[str]()
        for item in listed:
            member = item if isinstance(item, str) else _name(item)
            entry = self.task_index.get(member)
            if entry is not None and entry.kind == Kind.TAG:
                found |= entry.tags  # of a tag's entry these are its tasks
            elif entry is not None:
                found |= {member} | self._members(member)
            elif isinstance(item, dict) and isinstance(item.get("task"), list):  # a group that is written there
                found |= self._names_below(item["task"])
        return found


def no_such_task(name: str) -> UserError:
    """To be raised."""
    command = "python -m pipeline.evaluation.lm_eval_run ls tasks"
    return UserError(f"--tasks {name}: lm-eval has no such task; `{command}` lists them")


def _name(spec: LmEvalTask) -> str:
    return str(spec.get("group", spec.get("task"))) if isinstance(spec, dict) else str(spec)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
