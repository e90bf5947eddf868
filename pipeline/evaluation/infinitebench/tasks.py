"""InfiniteBench (arXiv 2402.13718): 12 tasks in English, Chinese, code and numbers, of 100k tokens and more."""

from pipeline.evaluation.infinitebench import metrics
from pipeline.evaluation.infinitebench.prompts import MAX_NEW_TOKENS, WITH_OPTIONS, fill_prompt, options_of
from pipeline.evaluation.long_context.suite import BadRowError, LongContextExample, Reference, Row, Suite, TaskSpec

_LETTERS = "ABCD"
_METRICS = {
    "passkey": ("accuracy", metrics.first_integer),
    "number_string": ("accuracy", metrics.first_integer),
    "kv_retrieval": ("accuracy", metrics.contains_value),
    "longbook_sum_eng": ("rouge_l_sum", metrics.rouge_l_sum),
    "longbook_choice_eng": ("accuracy", metrics.option_letter),
    "longbook_qa_eng": ("qa_f1", metrics.qa_f1),
    "longbook_qa_chn": ("qa_f1", metrics.qa_f1_chinese),
    "math_find": ("accuracy", metrics.first_number),
    "math_calc": ("leading_values", metrics.leading_values),
    "code_run": ("accuracy", metrics.last_integer),
    "code_debug": ("accuracy", metrics.buggy_function),
    "longdialogue_qa_eng": ("accuracy", metrics.contains_name),
}


def _read_references(task: str, row: Row) -> tuple[Reference, ...]:
    answer = row.get("answer")
    values = answer if isinstance(answer, list) else [answer]
    if task == "math_calc" and values and isinstance(values[0], list):
        values = values[0]
    if not values or not all(isinstance(value, str | int | float) for value in values):
        raise BadRowError(f"'answer' must be a text, a number or a list of them, found {str(answer)[:80]}")
    if task not in WITH_OPTIONS:
        return tuple(values)
    options = options_of(row)
    if len(values) == 2 and values[1] in tuple(_LETTERS):
        return tuple(values)
    if len(values) != 1 or values[0] not in options:
        raise BadRowError(f"'answer' must be one of the options, found {str(answer)[:80]}")
    return values[0], _LETTERS[options.index(values[0])]


def _read_row(example_id: str, task: str, row: Row) -> LongContextExample:
    return LongContextExample(example_id, task, fill_prompt(task, row), _read_references(task, row))


INFINITEBENCH = Suite(
    name="infinitebench",
    title="InfiniteBench",
    repository="xinrongzhang2022/InfiniteBench",
    decodes_halves_apart=False,
    tasks=tuple(
        TaskSpec(
            name=name,
            file=f"{name}.jsonl",
            archive=None,
            max_new_tokens=MAX_NEW_TOKENS[name],
            metric=metric,
            read_row=_read_row,
            score=score,
        )
        for name, (metric, score) in _METRICS.items()
    ),
)
