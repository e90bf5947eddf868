"""InfiniteBench's metrics case by case; where the official code raises or misreads the data, the case says so."""

from fractions import Fraction

import pytest

from pipeline.evaluation.infinitebench.tasks import INFINITEBENCH
from pipeline.evaluation.long_context.suite import LongContextExample

SCORE = {task.name: task.score for task in INFINITEBENCH.tasks}
CHOICE, BUG = ("At the opera", "C"), ("xtype_to_fp", "B")

CASES = [  # task, case, prediction, references, score
    ("longbook_qa_eng", "exact", "Kitty", ("Kitty",), 1),
    ("longbook_qa_eng", "a sentence around it", 'Laurel calls her letter "Kitty."', ("Kitty",), Fraction(1, 3)),
    ("longbook_qa_eng", "the best reference", "the red hat", ("a cap", "a red hunting hat"), Fraction(4, 5)),
    ("longbook_qa_eng", "repeated words", "ha ha ha", ("ha ha",), Fraction(4, 5)),
    ("longbook_qa_eng", "no blacklist here", "because of that", ("because of that",), 1),
    ("longbook_qa_eng", "empty", "", ("Kitty",), 0),
    ("longbook_qa_eng", "punctuation only", "...?!", ("Kitty",), 0),
    ("longbook_qa_eng", "articles only", "the", ("the",), 0),
    ("longbook_qa_chn", "exact", "张三。", ("张三",), 1),
    ("longbook_qa_chn", "characters, not words", "张三丰", ("张三",), Fraction(4, 5)),
    ("longbook_qa_chn", "repeated characters", "哈哈哈", ("哈哈",), Fraction(4, 5)),
    ("longbook_qa_chn", "the best reference", "李四", ("张三", "李四"), 1),
    ("longbook_qa_chn", "no blacklist here", "可以的", ("可以的",), 1),
    ("longbook_qa_chn", "the opening mark of a title stays", "《书》", ("书",), Fraction(2, 3)),
    ("longbook_qa_chn", "empty", "", ("张三",), 0),
    ("longbook_qa_chn", "punctuation only", "！？。", ("！？。",), 0),
    ("longbook_sum_eng", "exact", "The cat sat.\nIt slept.", ("The cat sat.\nIt slept.",), 1),
    ("longbook_sum_eng", "half", "the cat", ("the cat sat down",), Fraction(2, 3)),
    ("longbook_sum_eng", "lines in another order", "it slept\nthe cat sat", ("the cat sat\nit slept",), 1),
    ("longbook_sum_eng", "the same on one line", "it slept the cat sat", ("the cat sat it slept",), Fraction(3, 5)),
    ("longbook_sum_eng", "no stemming", "cats", ("cat",), 0),
    ("longbook_sum_eng", "the best reference", "the cat", ("a dog", "the cat"), 1),
    ("longbook_sum_eng", "empty", "", ("the cat",), 0),
    ("longbook_choice_eng", "letter", "C", CHOICE, 1),
    ("longbook_choice_eng", "letter and text", " C. At the opera", CHOICE, 1),
    ("longbook_choice_eng", "another letter", "A. At the opera", CHOICE, 0),
    ("longbook_choice_eng", "any word with such a capital", "Certainly A", CHOICE, 1),
    ("longbook_choice_eng", "the option's text, as another letter", "At the opera", CHOICE, 0),
    ("longbook_choice_eng", "the option's text", "Hurons", ("Hurons", "A"), 1),
    ("longbook_choice_eng", "announced", "I think the answer is: C", CHOICE, 1),
    ("longbook_choice_eng", "announced without a colon", "The correct option is\nC, I think", CHOICE, 1),
    ("longbook_choice_eng", "the first announcement decides", "The answer is not C", CHOICE, 0),
    ("longbook_choice_eng", "and so does the last kind", "The right option is not C", CHOICE, 0),
    ("longbook_choice_eng", "announced and not given", "I think the answer is:", CHOICE, 0),
    ("longbook_choice_eng", "anywhere", "It must be C or D", CHOICE, 1),
    ("longbook_choice_eng", "letters run together come first", "It must be BC or C", CHOICE, 0),
    ("longbook_choice_eng", "no letter", "I do not know", CHOICE, 0),
    ("longbook_choice_eng", "empty", " \n", CHOICE, 0),
    ("code_debug", "letter with a mark", " B. xtype_to_fp", BUG, 1),
    ("code_debug", "letter with a colon", "B:", BUG, 1),
    ("code_debug", "a letter alone is not read", "B", BUG, 0),
    ("code_debug", "another letter", "C. xtype_to_fp", BUG, 0),
    ("code_debug", "announced name", "The correct option is: `xtype_to_fp`", BUG, 1),
    ("code_debug", "the character after an announcement goes unseen", "The answer is:xtype_to_fp", BUG, 0),
    ("code_debug", "announced option", "answer:\nOption B", BUG, 1),
    ("code_debug", "announced letter", "**Answer**: the answer is: B", BUG, 1),
    ("code_debug", "empty", "", BUG, 0),
    ("passkey", "exact", " 71432.", ("71432",), 1),
    ("passkey", "only the first digits", "1. 71432", ("71432",), 0),
    ("passkey", "leading zero", "071432", ("71432",), 0),
    ("passkey", "none", "no idea", ("71432",), 0),
    ("number_string", "exact", "The sequence is 22333\n", ("22333",), 1),
    ("kv_retrieval", "quoted (officially never right, its label is in a list)", '"c14c-00": "a-b"', ("a-b",), 1),
    ("kv_retrieval", "part of a word", "xa-b", ("a-b",), 0),
    ("kv_retrieval", "empty", "", ("a-b",), 0),
    ("longdialogue_qa_eng", "any case", "It was Bruce.", ("BRUCE",), 1),
    ("longdialogue_qa_eng", "only the first reference", "Alfred", ("BRUCE", "ALFRED"), 0),
    ("longdialogue_qa_eng", "a name of two words is never found", "Miss Kyle", ("MISS KYLE",), 0),
    ("math_find", "exact", " 83.", (83,), 1),
    ("math_find", "fraction", "2.5 and 3", (2.5,), 1),
    ("math_find", "fraction for a whole number (officially an exception)", "83.5", (83,), 0),
    ("math_find", "fraction that no float has", "0.1", (0.1,), 1),
    ("math_find", "a whole number written as a fraction", "83.0", (83,), 1),
    ("math_find", "above 2^53", "9007199254740993", (9007199254740993,), 1),
    ("math_find", "its neighbour, the same as a float", "9007199254740992", (9007199254740993,), 0),
    ("math_find", "half a unit off", "9007199254740993.5", (9007199254740993,), 0),
    ("math_find", "more digits than int() reads", "1" * 5000, (1,), 0),
    ("math_find", "the sign goes unseen", "-83", (83,), 1),
    ("math_find", "none", "eighty", (83,), 0),
    ("math_calc", "all", " [1, 4, 08]", (1, 4, 8), 1),
    ("math_calc", "up to the first error", "[1, 4, 9, 8]", (1, 4, 8, 8), Fraction(1, 2)),
    ("math_calc", "cut short", "[1", (1, 4, 8), Fraction(1, 3)),
    ("math_calc", "wrong from the start", "[2, 4, 8]", (1, 4, 8), 0),
    ("math_calc", "signs go unseen", "[-1]", (1,), 1),
    ("math_calc", "so a negative value is never right", "[-1]", (-1,), 0),
    ("math_calc", "more digits than int() reads (officially an exception)", "1" * 5000, (1,), 0),
    ("math_calc", "above 2^53", "[9007199254740992]", (9007199254740993,), 0),
    ("math_calc", "empty", "", (1,), 0),
    ("code_run", "the last word", "func_1(2) returns: -14.", (-14,), 1),
    ("code_run", "above 2^53", "9007199254740993", (9007199254740993,), 1),
    ("code_run", "its neighbour", "9007199254740992", (9007199254740993,), 0),
    ("code_run", "fraction", "-14.5", (5,), 1),
    ("code_run", "no number", "I do not know", (5,), 0),
    ("code_run", "empty", " \n", (5,), 0),
]


@pytest.mark.parametrize(
    ("task", "prediction", "references", "expected"), [pytest.param(c[0], *c[2:], id=f"{c[0]}: {c[1]}") for c in CASES]
)
def test_cases(task, prediction, references, expected):
    found = SCORE[task](prediction, LongContextExample(f"{task}/1", task, "", references))
    assert found == pytest.approx(float(expected))


def test_every_task_has_cases():
    assert {case[0] for case in CASES} == set(SCORE)
