"""ROUGE-L of package `rouge`, which LV-Eval's and LongBench's official code score with, for texts of any length.

The package walks back through its table by recursion, one call a word. Under a deep caller, texts of a few hundred
words end in a RecursionError, which the official code, and lm-eval's, turn into a score of 0. Here the walk is a loop
that chooses the same words, so a score is a function of the two texts alone.
"""

from collections.abc import Sequence

from rouge import Rouge, rouge_score
from rouge.rouge_score import Ngrams


def mend_recursion() -> None:
    """Has the package walk back by a loop, for all that score with it in this process, lm-eval's tasks among them."""
    rouge_score._recon_lcs = _longest_common_subsequence


def rouge_l(prediction: str, reference: str) -> float:
    """F of ROUGE-L over the distinct words of each, which stand between spaces; a sentence ends at ".".

    0 where one of the texts has no sentence.
    """
    if not prediction.strip(".") or not reference.strip("."):
        return 0.0
    mend_recursion()
    (scores,) = Rouge(metrics=["rouge-l"]).get_scores(prediction, reference)
    return scores["rouge-l"]["f"]


def _longest_common_subsequence(x: Sequence[str], y: Sequence[str], exclusive: bool = True) -> Ngrams:
    """In place of the package's `_recon_lcs`, with its choices among subsequences of one length."""
    table, i, j, words = rouge_score._lcs(x, y), len(x), len(y), []
    while i > 0 and j > 0:
        if x[i - 1] == y[j - 1]:
            i, j = i - 1, j - 1
            words.append(x[i])
        elif table[i - 1, j] > table[i, j - 1]:
            i -= 1
        else:
            j -= 1
    return Ngrams(reversed(words), exclusive=exclusive)
