"""How well a model gives a known answer: by likelihood, and in what it writes."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.evaluation.reader import Reader
from pipeline.model.cache import HippocampusCache


@dataclass(frozen=True)
class AnswerScores:
    """Of each token of the right answer, given those before it: log-probability in nats, float64 [A], and whether it is
    the likeliest token of the vocabulary, bool [A]."""

    log_probs: np.ndarray
    top1: np.ndarray


def score_answer(
    reader: Reader, context: Sequence[int], question: Sequence[int], answer: Sequence[int], cache: HippocampusCache
) -> AnswerScores:
    """Scores an answer [A >= 1] after a question [Q >= 1]; the cache has seen the context, and goes on."""
    tokens = [*context, *question, *answer[:-1]]
    found = reader.score(tokens, len(question) + len(answer) - 1, cache)
    before = len(found.log_probs) - (len(answer) - 1)
    last = answer[-1]
    log_probs = [*found.log_probs[before:].tolist(), float(found.next_log_probs[last])]
    top1 = [*found.greedy[before:].tolist(), int(found.next_log_probs.argmax()) == last]
    return AnswerScores(np.array(log_probs), np.array(top1))


def mentions(text: str, value: str) -> bool:
    """Whether `text` has `value` as a whole word."""
    return re.search(rf"(?<!\w){re.escape(value)}(?!\w)", text) is not None
