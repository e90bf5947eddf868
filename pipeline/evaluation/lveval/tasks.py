"""LV-Eval (arXiv 2402.05136): 11 question answering sets in Chinese and English, each at 5 lengths."""

from functools import partial

from pipeline.evaluation.long_context.suite import BadRowError, LongContextExample, Row, Suite, TaskSpec, text_field
from pipeline.evaluation.lveval import metrics
from pipeline.evaluation.lveval.prompts import MAX_NEW_TOKENS, PROMPTS

LENGTHS = ("16k", "32k", "64k", "128k", "256k")  # words of English, characters of Chinese
_CHINESE_SETS = ("multifieldqa_zh_mixup", "cmrc_mixup", "lic_mixup")
_METRICS = {
    **dict.fromkeys(PROMPTS, ("keyword_f1", metrics.keyword_f1_english)),
    **dict.fromkeys(_CHINESE_SETS, ("keyword_f1", metrics.keyword_f1_chinese)),
    "factrecall_en": ("f1", metrics.plain_f1_english),
    "factrecall_zh": ("f1", metrics.plain_f1_chinese),
    "dureader_mixup": ("rouge_l", metrics.blacklisted_rouge_l),
}


def _read_row(prompt: str, example_id: str, task: str, row: Row) -> LongContextExample:
    answers, keywords = row.get("answers"), row.get("answer_keywords")
    if not isinstance(answers, list) or not answers or not all(isinstance(answer, str) for answer in answers):
        raise BadRowError(f"'answers' must be a list of strings, found {str(answers)[:80]}")
    if keywords is not None and not isinstance(keywords, str):
        raise BadRowError(f"'answer_keywords' must be a string, found {type(keywords).__name__}")
    text = prompt.format(context=text_field(row, "context"), input=text_field(row, "input"))
    return LongContextExample(example_id, task, text, tuple(answers), keywords)


def _tasks_of(set_name: str) -> list[TaskSpec]:
    metric, score = _METRICS[set_name]
    return [
        TaskSpec(
            name=f"{set_name}_{length}",
            file=f"{set_name}_{length}.jsonl",
            archive=f"{set_name}.zip",
            max_new_tokens=MAX_NEW_TOKENS[set_name],
            metric=metric,
            read_row=partial(_read_row, PROMPTS[set_name]),
            score=score,
        )
        for length in LENGTHS
    ]


LVEVAL = Suite(
    name="lveval",
    title="LV-Eval",
    repository="Infinigence/LVEval",
    decodes_halves_apart=True,
    tasks=tuple(task for set_name in PROMPTS for task in _tasks_of(set_name)),
)
