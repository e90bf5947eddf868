"""InfiniteBench's prompts, as its src/prompt.py has them for open models (OpenBMB/InfiniteBench, MIT).

Those are its `yarn_mistral_templates`: the text ends where the answer begins, so a base model can go on too. How a
row fills them is what src/eval_utils.py does for the rows of the published dataset.
"""

import re

from pipeline.evaluation.long_context.suite import BadRowError, Row, text_field

PROMPTS = {
    "passkey": (
        "There is an important info hidden inside a lot of irrelevant text. Find it and memorize it. I will quiz you "
        "about the important information.\n\n{context}\n\n{input}\n\nThe pass key is"
    ),
    "number_string": (
        "There is an important info hidden inside a lot of irrelevant text. Find it. I will quiz you about the "
        "important information there.\n\n{context}\n\n{input}\n\nThe sequence of digits is"
    ),
    "kv_retrieval": (
        "Extract the value corresponding to the specified key in the JSON object below.\n\n{context}\n\n{input}"
    ),
    "longbook_sum_eng": "Summarize the book below.\n\n{context}\n\nSummary:",
    "longbook_choice_eng": (
        "Read the book and answer the question.\n\n{context}\n\nQuestion: {question}\n"
        "A. {OPTION_A}\nB. {OPTION_B}\nC. {OPTION_C}\nD. {OPTION_D}\n\nThe letter of the correct answer is"
    ),
    "longbook_qa_eng": (
        "Read the book and answer the question. Be very concise in your answer.\n\n{context}\n\n"
        "Question: {question}\nAnswer:"
    ),
    "longbook_qa_chn": "阅读以下书籍然后回答问题。\n\n{context}\n\n问题：{question}\n答案：",
    "math_find": "{prefix}\n\n{context}\n\n{input}",
    "math_calc": (
        "Let us calculate the intermediate values of an expression.\n\nExpression: 1 + 3 + 4\nValues: [1, 4, 8]\n\n"
        "Expression: 8 - 3 + 2 - 4\nValues: [8, 5, 7, 3]\n\nExpression: {context}\nValues:"
    ),
    "code_run": (
        "There is a function called {func} in the following Python code.\n\n{context}\n\n"
        "Please compute the exact value of {func_call}. The value of {func_call} is"
    ),
    "code_debug": (
        "Following is a Python code where exactly one of the functions/methods has a deliberate error that makes it "
        "crash.\n\n{context}\n\nOptions:\nA. {OPTION_A}\nB. {OPTION_B}\nC. {OPTION_C}\nD. {OPTION_D}\n\n"
        "The correct option is:"
    ),
    "longdialogue_qa_eng": (
        "Below is a dialogue script where one random occurrence of a character name is replaced with "
        '"$$MASK$$", and you should try to guess who that character is.\n\n{context}\n\n'
        "The name that has been replaced with $$MASK$$ is likely"
    ),
}
MAX_NEW_TOKENS = {
    "passkey": 6,
    "number_string": 12,
    "kv_retrieval": 50,
    "longbook_sum_eng": 1200,
    "longbook_choice_eng": 40,
    "longbook_qa_eng": 40,
    "longbook_qa_chn": 40,
    "longdialogue_qa_eng": 40,
    "math_find": 3,
    "math_calc": 30000,
    "code_run": 5,
    "code_debug": 5,
}
WITH_OPTIONS = ("longbook_choice_eng", "code_debug")
_CALL = re.compile(r"(func_[0-9]+)\(-?[0-9]+\)")
_TARGET_NUMBER = re.compile(r"(The .+) of")


def options_of(row: Row) -> list[str]:
    """The four options, A to D.

    Raises:
        BadRowError: there are not four strings.
    """
    options = row.get("options")
    if not isinstance(options, list) or len(options) != 4 or not all(isinstance(option, str) for option in options):
        raise BadRowError(f"'options' must be four strings, found {str(options)[:80]}")
    return options


def fill_prompt(task: str, row: Row) -> str:
    """The whole prompt of a row.

    Raises:
        BadRowError: the row lacks a field, or its `input` does not name what the task asks about.
    """
    template, question = PROMPTS[task], text_field(row, "input")
    fields = {"context": text_field(row, "context"), "input": question, "question": question}
    if task in WITH_OPTIONS:
        fields |= dict(zip(("OPTION_A", "OPTION_B", "OPTION_C", "OPTION_D"), options_of(row), strict=True))
    elif task == "code_run":
        call = _search(_CALL, question, "a call such as func_1(2)")
        fields |= {"func": call[1], "func_call": call[0]}
    elif task == "math_find":
        number = _search(_TARGET_NUMBER, question, "a number such as 'The largest number of'")[1]
        fields["prefix"] = f"What is {number.lower()} in the following list?"
    return template.format(**fields)


def _search(pattern: re.Pattern[str], question: str, what: str) -> re.Match[str]:
    found = pattern.search(question)
    if found is None:
        raise BadRowError(f"'input' must name {what}, found {question[:80]!r}")
    return found
