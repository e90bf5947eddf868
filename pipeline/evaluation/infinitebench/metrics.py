"""InfiniteBench's metrics, number for number those of its src/compute_scores.py (OpenBMB/InfiniteBench).

Two differences, both where the official code gives no number that means anything: a reference of kv_retrieval that
the data wraps in a list is taken out of it (a list is never among the words), and a decimal fraction where
math_find has a whole number is wrong (there it ends the program).
"""

import functools
import re
from decimal import Decimal
from typing import TYPE_CHECKING

from pipeline.evaluation.long_context.answer_f1 import english_words, overlap_f1, strip_chinese
from pipeline.evaluation.long_context.suite import LongContextExample

if TYPE_CHECKING:
    from rouge_score.rouge_scorer import RougeScorer

_RETRIEVAL_MARKS = str.maketrans(dict.fromkeys("\n:\"'.,?!{}", " "))
_CODE_MARKS = str.maketrans(dict.fromkeys("\n.`'\":", " "))
_CHOICE_MARKS = str.maketrans(dict.fromkeys("\n\"'.,?!{}", " "))
_DEBUG_MARKS = re.compile(r"[\n`'\"*-]|Option|option")


@functools.cache
def _rouge_lsum() -> "RougeScorer":
    """Made when it is needed: rouge_score imports NLTK, and so scikit-learn and pandas, which takes 1.5 s."""
    from rouge_score.rouge_scorer import RougeScorer
    from rouge_score.tokenizers import DefaultTokenizer

    # Its own tokenizer, given by hand: left to choose it, the scorer says so and thereby sets up logging for all.
    return RougeScorer(["rougeLsum"], tokenizer=DefaultTokenizer())


def qa_f1(prediction: str, example: LongContextExample) -> float:
    """Best F1 over words of any reference: longbook_qa_eng."""
    words = english_words(prediction)
    return max(overlap_f1(words, english_words(str(reference))) for reference in example.references)


def qa_f1_chinese(prediction: str, example: LongContextExample) -> float:
    """Best F1 over characters of any reference: longbook_qa_chn."""
    characters = strip_chinese(prediction)
    return max(overlap_f1(characters, strip_chinese(str(reference))) for reference in example.references)


def rouge_l_sum(prediction: str, example: LongContextExample) -> float:
    """Best F of ROUGE-Lsum, lines as sentences and no stemming: longbook_sum_eng."""
    references = [str(reference) for reference in example.references]
    return _rouge_lsum().score_multi(references, prediction)["rougeLsum"].fmeasure


def first_integer(prediction: str, example: LongContextExample) -> float:
    """The first run of digits is the reference: passkey and number_string."""
    found = re.search("[0-9]+", prediction)
    return float(found is not None and found[0] == example.references[0])


def contains_value(prediction: str, example: LongContextExample) -> float:
    """A word of the answer is the reference: kv_retrieval."""
    return float(example.references[0] in prediction.translate(_RETRIEVAL_MARKS).split())


def contains_name(prediction: str, example: LongContextExample) -> float:
    """A word of the answer, in capitals, is the first reference: longdialogue_qa_eng."""
    return float(example.references[0] in prediction.translate(_RETRIEVAL_MARKS).upper().split())


def last_integer(prediction: str, example: LongContextExample) -> float:
    """The last word is the reference: code_run."""
    words = prediction.translate(_CODE_MARKS).split()
    try:
        return float(int(words[-1]) == example.references[0])
    except (IndexError, ValueError):
        return 0.0


def first_number(prediction: str, example: LongContextExample) -> float:
    """The first number without its sign is the reference: math_find."""
    found = re.search(r"\d+\.\d+|\d+", prediction)
    if found is None:
        return 0.0
    reference = example.references[0]
    # A float has 53 bits: as floats, long whole numbers would be equal to their neighbours.
    number = float(found[0]) if isinstance(reference, float) else Decimal(found[0])
    return float(number == reference)


def leading_values(prediction: str, example: LongContextExample) -> float:
    """The part of the references before the first that is wrong or missing: math_calc."""
    # As text: int() refuses the thousands of digits that a model may run together.
    values = [digits.lstrip("0") or "0" for digits in re.findall("[0-9]+", prediction)]
    right = 0
    for value, reference in zip(values, example.references, strict=False):
        if value != str(reference):
            break
        right += 1
    return right / len(example.references)


def option_letter(prediction: str, example: LongContextExample) -> float:
    """A letter in front, else the option itself, else what follows "answer is": longbook_choice_eng.

    References are the text of the right option and its letter.
    """
    answer = prediction.strip()
    if not answer:
        return 0.0
    if answer[0] in "ABCD":
        return float(answer[0] in example.references)
    if answer in example.references:
        return 1.0
    answer = re.sub(" +", " ", answer.translate(_CHOICE_MARKS))
    for announcement in ("answer is:", "answer:", "answer is", "option is"):
        if announcement in answer:
            return _follows(announcement, answer, example)
    # "in" as the official code has it: "BC" counts for a word of options as well, and is wrong
    words = (word for word in answer.split() if word in "ABCD")
    return float(next(words, None) in example.references)


def buggy_function(prediction: str, example: LongContextExample) -> float:
    """The letter in front with "." or ":", else letter or name after "answer is:": code_debug.

    References are the name of the function and its letter. A letter alone scores 0, officially.
    """
    answer, letter = prediction.strip(), example.references[1]
    if answer[:2] in (f"{letter}.", f"{letter}:"):
        return 1.0
    answer = re.sub(" +", " ", _DEBUG_MARKS.sub(" ", answer))
    for announcement in ("answer is:", "is:", "answer:"):
        if announcement in answer:
            return _follows(announcement, answer, example)
    return 0.0


def _follows(announcement: str, answer: str, example: LongContextExample) -> float:
    after = answer[answer.find(announcement) + len(announcement) + 1 :]  # the character between goes unseen
    return float(any(after.startswith(str(reference)) for reference in example.references))
