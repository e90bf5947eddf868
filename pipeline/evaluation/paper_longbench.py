"""LongBench as the AHN paper's code runs it (ByteDance-Seed/AHN, eval/longbench), as a task group of lm-eval.

Six sets whose texts are longer than 8,000 tokens on average; lm-eval's own questions and metrics. A prompt of more than
32,000 tokens loses its beginning before the chat template goes around it, and none goes around triviaqa. What of an
answer is scored, how many new tokens it has, and triviaqa's blank line before its question are the reference's, too.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import datasets
from lm_eval.api.group import Group
from lm_eval.api.task import ConfigurableTask
from lm_eval.config.group import AggMetricConfig
from transformers import PreTrainedTokenizerBase

from pipeline.attention.window import WindowSpec

GROUP = "paper_longbench"
NEW_TOKENS = {"dureader": 128, "hotpotqa": 32, "musique": 32, "narrativeqa": 128, "qmsum": 500, "triviaqa": 32}
TASKS = {f"{GROUP}_{name}": f"longbench_{name}" for name in NEW_TOKENS}
"""Ours by lm-eval's own."""
MAX_PROMPT_TOKENS = 32_000
WINDOW = WindowSpec(num_sink_tokens=128, window_size=8064)
WITHOUT_TEMPLATE = f"{GROUP}_triviaqa"
_ENDS = (".assistant", "\n\nQuestion", "</s>", "(Document", "\n\nAnswer", "(Passage")


class UnwrappedTask(ConfigurableTask):
    """A task whose prompts no chat template goes around."""

    def fewshot_context(self, doc: dict[str, Any], num_fewshot: int, **options: Any) -> str | list[str]:
        """As lm-eval's."""
        return super().fewshot_context(doc, num_fewshot, **options | {"apply_chat_template": False})


def paper_longbench_group(
    originals: Mapping[str, ConfigurableTask],
    tokenizer: PreTrainedTokenizerBase,
    window: WindowSpec | None,
    *,
    apply_chat_template: bool,
) -> Group:
    """The group `paper_longbench`, or those of its tasks that are there, each labelled with what the run has otherwise
    than the paper. Each has the metrics `score`, of which the group has the mean over tasks, and `truncated`, the
    number of prompts that lost their beginning.

    Args:
        originals: lm-eval's tasks by our names.
        tokenizer: of the model.
        window: of the model; None has full attention.
        apply_chat_template: whether lm-eval will wrap prompts.
    """
    score = AggMetricConfig(metric="score", aggregation="mean", weight_by_size=False)
    differences = _describe_differences(window, apply_chat_template)
    group = Group(GROUP, alias=f"{GROUP}{differences}", aggregate_metric_list=[score], metadata={"version": 1})
    for name, original in originals.items():
        group.add(_build_task(name, original, tokenizer, f"{name}{differences}"))
    return group


def cut_answer(name: str, answer: str) -> str:
    """What the reference scores of an answer to task `name`."""
    for end in _ENDS:
        answer = answer.split(end)[0]
    answer = answer.strip()
    if name == f"{GROUP}_triviaqa":
        return answer.split("\n")[0]
    return answer.split("问题：")[0].strip() if name == f"{GROUP}_dureader" else answer


def fit_prompt(prompt: str, tokenizer: PreTrainedTokenizerBase, new_tokens: int) -> str:
    """The prompt, or of one with more than 32,000 tokens the text of the last that leave room for `new_tokens`."""
    tokens = tokenizer(prompt, truncation=False, verbose=False).input_ids
    if len(tokens) <= MAX_PROMPT_TOKENS:
        return prompt
    return tokenizer.decode(tokens[-(MAX_PROMPT_TOKENS - new_tokens) :], skip_special_tokens=True)


def _build_task(
    name: str, original: ConfigurableTask, tokenizer: PreTrainedTokenizerBase, label: str
) -> ConfigurableTask:
    new_tokens, rows = NEW_TOKENS[name.removeprefix(f"{GROUP}_")], []
    for doc in original.eval_docs:
        whole = original.doc_to_text(doc)
        if name == f"{GROUP}_triviaqa":
            whole = f"{whole.removesuffix(doc['question'])}\n{doc['question']}"
        prompt = fit_prompt(whole, tokenizer, new_tokens)
        rows.append({"prompt": prompt, "truncated": int(prompt != whole), "answers": doc["answers"]})

    def dataset(**_: object) -> dict[str, datasets.Dataset]:
        return {"test": datasets.Dataset.from_list(rows)}

    config = {
        "task": name,
        "task_alias": label,  # a task that is asked for alone has no group to say it
        "custom_dataset": dataset,
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": "prompt",
        "doc_to_target": "answers",
        "process_results": partial(_score, name, original.config.process_results),
        "metric_list": [
            {"metric": "score", "aggregation": "mean", "higher_is_better": True},
            {"metric": "truncated", "aggregation": sum, "higher_is_better": False},
        ],
        "generation_kwargs": {"until": [], "do_sample": False, "max_gen_toks": new_tokens},
        "num_fewshot": 0,
        "metadata": {"version": 1},
    }
    return (UnwrappedTask if name == WITHOUT_TEMPLATE else ConfigurableTask)(config=config)


def _score(
    name: str, score: Callable[[Mapping[str, Any], list[str]], Mapping[str, float]], row: Mapping[str, Any],
    answers: list[str],
) -> dict[str, float]:  # fmt: skip
    return {"score": score(row, [cut_answer(name, answers[0])])["score"], "truncated": row["truncated"]}


def _describe_differences(window: WindowSpec | None, apply_chat_template: bool) -> str:
    """What of the paper's set-up this run has otherwise."""
    differences = [] if apply_chat_template else ["chat template"]
    if window not in (None, WINDOW):
        differences.insert(0, f"S = {WINDOW.num_sink_tokens}, R = {WINDOW.window_size:,}")
    return f" (the paper's: {'; '.join(differences)})" if differences else ""
