"""LV-Eval's metrics, number for number those of its metrics.py and evaluation.py (infinigence/LVEval).

Only the first reference counts. Where the paper and the code differ, this follows the code: the blacklist filters
the keywords that were found, not the words that F1 counts. Where the official code divides by zero, because
keywords or reference are nothing but punctuation, the score here is 0. Where its ROUGE-L runs out of stack and gives
0, because the texts are long or its caller deep, the score here is that of the texts.
"""

import logging
from collections import Counter
from collections.abc import Sequence

import jieba

from pipeline.evaluation.long_context.answer_f1 import english_words, overlap_f1, strip_chinese
from pipeline.evaluation.long_context.rouge_l import rouge_l
from pipeline.evaluation.long_context.suite import LongContextExample
from pipeline.evaluation.lveval import blacklists

ENGLISH_RECALL, CHINESE_RECALL = 0.2, 0.4  # of the keywords; below it an answer scores 0
jieba.setLogLevel(logging.WARNING)  # it reports its dictionary's loading


def chinese_words(text: str) -> list[str]:
    """jieba's words in lower case, without punctuation and white space."""
    return [word for word in map(strip_chinese, jieba.cut(text)) if word]


def plain_f1_english(prediction: str, example: LongContextExample) -> float:
    """F1 over words: factrecall_en."""
    return overlap_f1(english_words(prediction), english_words(_first(example)))


def plain_f1_chinese(prediction: str, example: LongContextExample) -> float:
    """F1 over jieba's words: factrecall_zh."""
    return overlap_f1(chinese_words(prediction), chinese_words(_first(example)))


def keyword_f1_english(prediction: str, example: LongContextExample) -> float:
    """F1 over words, 0 for an answer with less than 0.2 of the keywords. Without keywords nothing is asked for."""
    words = english_words(prediction)
    if example.keywords:
        keywords = english_words(example.keywords)
        if _keyword_recall(words, keywords, blacklists.ENGLISH) < ENGLISH_RECALL:
            return 0.0
    return overlap_f1(words, english_words(_first(example)))


def keyword_f1_chinese(prediction: str, example: LongContextExample) -> float:
    """F1 over jieba's words, 0 for an answer with less than 0.4 of the keywords; without any, of the reference."""
    words, keywords = chinese_words(prediction), chinese_words(example.keywords or _first(example))
    if _keyword_recall(words, keywords, blacklists.CHINESE) < CHINESE_RECALL:
        return 0.0
    return overlap_f1(words, chinese_words(_first(example)))


def blacklisted_rouge_l(prediction: str, example: LongContextExample) -> float:
    """F of ROUGE-L over jieba's words that are not blacklisted: dureader_mixup.

    As package `rouge` counts, which is over distinct words; 0 for an empty text.
    """
    return rouge_l(_without_blacklisted(prediction), _without_blacklisted(_first(example)))


def _first(example: LongContextExample) -> str:
    return str(example.references[0])


def _keyword_recall(words: Sequence[str], keywords: Sequence[str], blacklist: frozenset[str]) -> float:
    """Found and not blacklisted among all keywords, the blacklisted ones included."""
    found = Counter(words) & Counter(keywords)
    return sum(count for word, count in found.items() if word not in blacklist) / len(keywords) if keywords else 0.0


def _without_blacklisted(text: str) -> str:
    # Cut twice, as the official code does: the second pass sees the first one's words apart, and may split them.
    words = map(strip_chinese, jieba.cut(" ".join(jieba.cut(text))))
    return " ".join(word for word in words if word not in blacklists.CHINESE)
