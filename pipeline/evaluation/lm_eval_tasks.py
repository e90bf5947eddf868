"""lm-eval's tasks as our command line has them: on --data_root's files, beside LV-Eval and the paper's LongBench."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lm_eval.api.group import Group
from lm_eval.api.task import Task
from transformers import AutoConfig, PreTrainedTokenizerBase

from pipeline.errors import UserError
from pipeline.evaluation import paper_longbench
from pipeline.evaluation.infinitebench import lm_eval_variant
from pipeline.evaluation.lm_eval_loading import LmEvalTask, Tasks, no_such_task
from pipeline.evaluation.long_context.data_files import locate_tasks
from pipeline.evaluation.long_context.suite import TaskSpec
from pipeline.evaluation.lveval.lm_eval_tasks import lveval_group
from pipeline.evaluation.lveval.tasks import LVEVAL
from pipeline.evaluation.positions import trained_positions
from pipeline.model.files import WINDOW_FLAGS, ModelFiles, is_published_id, resolve_model
from pipeline.tokenizer import load_tokenizer

LONGBENCH = set(paper_longbench.TASKS.values())
LVEVAL_TASKS = [f"{LVEVAL.name}_{spec.name}" for spec in LVEVAL.tasks]


class LocalTasks(Tasks):
    """As `Tasks`, for the `TaskManager` of lm-eval's command line.

    Added: the group `lveval` and its tasks, such as `lveval_hotpotwikiqa_mixup_16k`; `paper_longbench` and its own;
    `infinitebench` on the official
    files, labelled as lm-eval's variant; and, for RULER, the model's tokenizer where --model_args names none.
    """

    def __init__(
        self,
        data_root: Path | None,
        *,
        apply_chat_template: bool = False,
        check_loaded: Callable[[Mapping[str, Task]], None] | None = None,
        metadata: dict[str, Any] | None = None,
        **options: Any,
    ) -> None:
        """
        Args:
            data_root: of the benchmarks' files. None: lm-eval's tasks load from the hub, the others are refused.
            apply_chat_template: whether prompts will be wrapped in the tokenizer's template, which takes room.
            check_loaded: is given all tasks by name, and raises what speaks against them.
            metadata: --model_args and --metadata.
            options: lm-eval's.
        """
        self._data_root, self._apply_chat_template = data_root, apply_chat_template
        self._check_loaded = check_loaded
        self._arguments = dict(metadata or {})
        model = str(self._arguments.get("pretrained", "/no/model"))
        if "tokenizer" not in self._arguments and (Path(model).is_dir() or is_published_id(model)):
            self._arguments["tokenizer"] = resolve_model(Path(model), self._arguments.get("base")).tokenizer
        super().__init__(metadata=self._arguments, **options)

    @property
    def all_tasks(self) -> list[str]:
        """Names of tasks, groups and tags."""
        ours = {paper_longbench.GROUP, *paper_longbench.TASKS} if set(super().all_tasks) >= LONGBENCH else set()
        return sorted({*super().all_tasks, LVEVAL.name, *LVEVAL_TASKS, *ours})

    def list_all_tasks(self, list_groups: bool = True, list_tags: bool = True, list_subtasks: bool = True) -> str:
        """lm-eval's tables, and the names that are added."""
        ours = [LVEVAL.name, paper_longbench.GROUP] if list_groups else []
        ours += [*LVEVAL_TASKS, *paper_longbench.TASKS] if list_subtasks else []
        listed = super().list_all_tasks(list_groups=list_groups, list_tags=list_tags, list_subtasks=list_subtasks)
        return "\n".join((listed, "Added here:", *ours))

    def match_tasks(self, task_list: list[str]) -> list[str]:
        """Names of those asked for, with wildcards. lm-eval asks before it loads the model.

        Raises:
            UserError: there is no such task, LV-Eval's or InfiniteBench's files are missing, or a task cuts its prompts
                with the tokenizer of a model and none is named.
            DataError: an archive is damaged.
        """
        names = super().match_tasks(task_list)
        for asked in task_list if not names else ():
            if not Path(asked).exists():  # lm-eval takes folders and files of tasks, too
                raise no_such_task(asked)
        for name in names:
            if name in (LVEVAL.name, *LVEVAL_TASKS, paper_longbench.GROUP, *paper_longbench.TASKS):
                self._require_model(name)
            if name in (LVEVAL.name, *LVEVAL_TASKS):
                locate_tasks(LVEVAL, _lveval_specs(name), self._root(name))
            elif name.split("_")[0] == lm_eval_variant.GROUP:
                for task in self._variants(name):
                    lm_eval_variant.on_data_root(task, self._root(name))
        return names

    def load(self, task_list: Any) -> Any:
        """As `Tasks.load`.

        Raises:
            UserError: as there, or `check_loaded` says it.
        """
        specs = task_list if isinstance(task_list, list) else [task_list]
        names = (LVEVAL.name, lm_eval_variant.GROUP, paper_longbench.GROUP)
        groups = [f"{name}_" for name in names if name in specs]
        loaded = super().load([s for s in specs if not (isinstance(s, str) and s.startswith(tuple(groups)))])
        if self._check_loaded is not None:
            self._check_loaded(loaded["tasks"])
        return loaded

    def _build(self, spec: LmEvalTask) -> list[Task | Group]:
        if spec in (LVEVAL.name, *LVEVAL_TASKS):
            return self._build_lveval(spec)
        if spec in (paper_longbench.GROUP, *paper_longbench.TASKS):
            return self._build_paper_longbench(spec)
        if isinstance(spec, str) and spec.split("_")[0] == lm_eval_variant.GROUP:
            root = self._root(spec)
            tasks = [t for n in self._variants(spec) for t in self._build(lm_eval_variant.on_data_root(n, root))]
            if spec != lm_eval_variant.GROUP:
                return tasks
            group = Group(spec, alias=f"{spec} ({lm_eval_variant.LABEL})")
            for task in tasks:
                group.add(task)
            return [group]
        return super()._build(spec)

    def _variants(self, name: str) -> list[str]:
        """lm-eval's InfiniteBench tasks: all of them for the group's name."""
        if name != lm_eval_variant.GROUP:
            return [name]
        return [task for task in self.all_subtasks if task.startswith(f"{name}_")]

    def _build_paper_longbench(self, name: str) -> list[Task | Group]:
        chosen = [name] if name in paper_longbench.TASKS else list(paper_longbench.TASKS)
        files, tokenizer = self._model(name)
        group = paper_longbench.paper_longbench_group(
            {task: super(LocalTasks, self)._build(paper_longbench.TASKS[task])[0] for task in chosen},
            tokenizer,
            files.choose_window(*(self._arguments.get(flag) for flag in WINDOW_FLAGS)),
            apply_chat_template=self._apply_chat_template,
        )
        return list(group) if name in paper_longbench.TASKS else [group]

    def _build_lveval(self, name: str) -> list[Task | Group]:
        files, tokenizer = self._model(name)
        max_length = self._arguments.get("max_length")
        if max_length is None and files.kind == "base":
            max_length = trained_positions(AutoConfig.from_pretrained(files.folder))
        group = lveval_group(
            self._root(name),
            tokenizer,
            max_length,
            tasks=[spec.name for spec in _lveval_specs(name)],
            apply_chat_template=self._apply_chat_template,
        )
        return [group] if name == LVEVAL.name else list(group)

    def _require_model(self, name: str) -> None:
        if "pretrained" not in self._arguments:
            raise UserError(
                f"--tasks {name}: its prompts are cut with a model's tokenizer, and --model_args names no model; give "
                f"--model_args pretrained=FOLDER, also for a --model that reads none"
            )

    def _model(self, name: str) -> tuple[ModelFiles, PreTrainedTokenizerBase]:
        self._require_model(name)
        files = resolve_model(Path(self._arguments["pretrained"]), self._arguments.get("base"))
        return files, load_tokenizer(self._arguments.get("tokenizer", files.tokenizer))

    def _root(self, name: str) -> Path:
        if self._data_root is None:
            suite = name.split("_")[0]
            raise UserError(
                f"--tasks {name}: give --data_root, the folder with {suite}'s files; `python launchers/run_eval.py "
                f"--fetch {suite} --data_root FOLDER` brings them"
            )
        return self._data_root


def _lveval_specs(name: str) -> list[TaskSpec]:
    return [spec for spec in LVEVAL.tasks if name in (LVEVAL.name, f"{LVEVAL.name}_{spec.name}")]
