"""Suites `lveval` and `infinitebench`: every variant answers the official prompts, scored by the official metrics.

All variants of a run see the same prompt: whole, or with --max_context without its middle, as the official code cuts
it. The base's max_position_embeddings are no limit, for a window is not bound by them; where full attention would need
more of them, the result says so.
"""

import fnmatch
import hashlib
import json
import time
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from pipeline.config import Variant
from pipeline.errors import UserError
from pipeline.evaluation.evictions import require_evictions
from pipeline.evaluation.infinitebench.tasks import INFINITEBENCH
from pipeline.evaluation.long_context.data_files import TaskData, fetch_command, locate_tasks
from pipeline.evaluation.long_context.encoding import PromptEncoder
from pipeline.evaluation.long_context.scores import summarise_scores
from pipeline.evaluation.long_context.sections import make_section
from pipeline.evaluation.long_context.suite import LongContextExample, TaskSpec
from pipeline.evaluation.long_context.suite import Suite as Benchmark
from pipeline.evaluation.lveval.tasks import LVEVAL
from pipeline.evaluation.positions import positions_of
from pipeline.evaluation.reader import Reader
from pipeline.evaluation.suite import EvaluationInputs, Record, Section, Unit
from pipeline.model.loading import load_config

BENCHMARKS: dict[str, Benchmark] = {"lveval": LVEVAL, "infinitebench": INFINITEBENCH}


class BenchmarkSuite:
    """One unit a task, example and variant, with key "task/line/variant".

    A record has `score` (0 .. 1), `answer`, `prompt_tokens`, `evicted`, `truncated` and `seconds`.

    Raises:
        UserError: no --data_root, missing files, an unknown task, no chat template, no room for a prompt, or
            no prompt that evicts anything.
        DataError: a file is damaged or has no row of its task.
    """

    def __init__(self, name: Literal["lveval", "infinitebench"], inputs: EvaluationInputs) -> None:
        config = inputs.config
        self.name, self._benchmark, self._tokenizer = name, BENCHMARKS[name], inputs.tokenizer
        self._variants, self._is_chat = inputs.variants, config.chat
        if config.data_root is None:
            raise UserError(
                f"--data_root: `{name}` reads {self._benchmark.title}'s files; get them with: "
                f"{fetch_command(name, 'ROOT')}"
            )
        if config.chat and inputs.tokenizer.chat_template is None:
            raise UserError(f"--chat: the tokenizer {inputs.files.tokenizer} has no chat template; leave --chat out")
        tasks = _choose_tasks(self._benchmark, config.tasks, [suite for suite in config.suites if suite in BENCHMARKS])
        self._context, self._window = config.max_context, inputs.window
        self._largest_budget, self._decision_interval = inputs.largest_budget, inputs.decision_interval
        self._encoder = PromptEncoder(self._benchmark, tasks, inputs.tokenizer, config.max_context, is_chat=config.chat)
        base = load_config(inputs.files.tokenizer)
        self._positions = {v: positions_of(v, base, config.yarn_factor) for v in inputs.variants}
        self._data = {data.task.name: data for data in locate_tasks(self._benchmark, tasks, config.data_root)}
        self._ids, self._bad_rows, self._fingerprint = _scan(self._data, config.max_examples)
        self._reading: tuple[str, Iterator[LongContextExample]] = ("", iter(()))
        self._prompt: tuple[LongContextExample, list[int], bool] | None = None
        if not config.allow_no_evictions:
            self._check_evictions()

    def _check_evictions(self) -> None:
        """
        Raises:
            UserError: no prompt evicts anything.
        """
        longest = 0
        for key in self._ids:
            longest = max(longest, len(self._encoder.encode(self._find_example(key))[0]))
            if longest > self._largest_budget:
                break  # mostly at once
        cut = "" if self._context is None else f" --max_context {self._context}"
        evicting = self._window, self._variants, self._decision_interval
        require_evictions(f"--suites {self.name}{cut}", longest, *evicting)

    @property
    def settings(self) -> dict[str, Any]:
        data = f"{len(self._data)} tasks, {len(self._ids)} examples, sha256 {self._fingerprint}"
        return {
            "data": data,
            "context": self._context,
            "chat": self._is_chat,
            "around_prompts": self._encoder.around_prompts,
        }

    def units(self) -> list[Unit]:
        """At each example another variant comes first: else the same few of several processes would read all of them
        with full attention."""
        count = len(self._variants)
        turned = ((key, self._variants[(i + j) % count]) for i, key in enumerate(self._ids) for j in range(count))
        return [Unit(f"{key}/{variant}", (variant,)) for key, variant in turned]

    def measure(self, unit: Unit, readers: Mapping[Variant, Reader]) -> Record:
        (variant,) = unit.variants
        example, tokens, is_truncated = self._find_prompt(unit.key.rsplit("/", 1)[0])
        task, reader = self._data[example.task].task, readers[variant]
        started = time.monotonic()
        new = reader.generate(tokens, reader.new_cache(), task.max_new_tokens)
        seconds = time.monotonic() - started
        answer = self._tokenizer.decode(new, skip_special_tokens=True)
        return {
            "score": task.score(answer, example),
            "answer": answer,
            "prompt_tokens": len(tokens),
            "evicted": self._window.num_evicted(len(tokens)),
            "truncated": is_truncated,
            "seconds": seconds,
        }

    def summarise(self, records: Mapping[str, Record]) -> dict[str, Any]:
        tasks = [data.task for data in self._data.values()]
        scores = summarise_scores(self.name, tasks, self._variants, records)
        common = {"context": self._context, "chat": self._is_chat, "bad_rows": self._bad_rows}
        return {**common, "beyond_positions": self._find_beyond(records), **scores}

    def _find_beyond(self, records: Mapping[str, Record]) -> dict[Variant, dict[str, int]]:
        """Of variants that some prompt with its answer has too many `positions` for: how many `prompts` `of` all."""
        found = {}
        for variant, positions in self._positions.items():
            lengths = [
                record["prompt_tokens"] + self._data[key.split("/")[0]].task.max_new_tokens
                for key, record in records.items()
                if key.endswith(f"/{variant}")
            ]
            beyond = 0 if positions is None else sum(length > positions for length in lengths)
            if beyond:
                found[variant] = {"positions": positions, "prompts": beyond, "of": len(lengths)}
        return found

    def sections(self, summary: dict[str, Any], records: Mapping[str, Record]) -> list[Section]:
        return [make_section(self._benchmark, summary)]

    def _find_prompt(self, key: str) -> tuple[LongContextExample, list[int], bool]:
        """Example, its tokens as they are read, and whether it lost its middle; kept for the next variant."""
        if self._prompt is None or self._prompt[0].id != key:
            example = self._find_example(key)
            self._prompt = (example, *self._encoder.encode(example))
        return self._prompt

    def _find_example(self, key: str) -> LongContextExample:
        """Goes on in the task's file, or begins it again for an earlier line: one example is in memory at a time."""
        task = key.rpartition("/")[0]
        if self._reading[0] != task:
            self._reading = (task, iter(self._data[task]))
        found = next((example for example in self._reading[1] if example.id == key), None)
        if found is None:
            self._reading = (task, iter(self._data[task]))
            found = next(example for example in self._reading[1] if example.id == key)
        return found


def _choose_tasks(benchmark: Benchmark, asked: list[str] | None, suites: list[str]) -> list[TaskSpec]:
    if asked is None:
        return list(benchmark.tasks)
    known = [task.name for suite in suites for task in BENCHMARKS[suite].tasks]
    for pattern in asked:
        if not fnmatch.filter(known, pattern):
            raise UserError(f"--tasks {pattern}: no such task of {' or '.join(suites)}; they are {', '.join(known)}")
    chosen = [task for task in benchmark.tasks if any(fnmatch.fnmatchcase(task.name, pattern) for pattern in asked)]
    if not chosen:
        raise UserError(f"--tasks {asked}: none is {benchmark.title}'s; leave {benchmark.name} out of --suites")
    return chosen


def _scan(data: Mapping[str, TaskData], max_examples: int | None) -> tuple[list[str], dict[str, int], str]:
    """Ids of the examples, bad rows before the last of them by task, and a fingerprint of what they hold."""
    ids, bad_rows, fingerprint = [], {}, hashlib.sha256()
    for name, of_task in data.items():
        for number, example in enumerate(of_task, start=1):
            ids.append(example.id)
            content = [example.id, example.prompt, example.references, example.keywords]
            fingerprint.update(json.dumps(content).encode())
            if number == max_examples:
                break
        bad_rows[name] = len(of_task.bad_rows)
    return ids, bad_rows, fingerprint.hexdigest()[:16]
