"""Overlap of tokens between an answer and a reference, as SQuAD, LongBench, LV-Eval and InfiniteBench count it."""

import re
import string
from collections import Counter
from collections.abc import Sequence

# The list that these benchmarks share. It has the closing mark of a book title and not the opening one.
CHINESE_PUNCTUATION = (
    "！？｡。＂＃＄％＆＇（）＊＋，－／：；＜＝＞＠［＼］＾＿｀｛｜｝～｟｠｢｣､、〃》"
    "「」『』【】〔〕〖〗〘〙〚〛〜〝〞〟〰〾〿–—‘’‛“”„‟…‧﹏."
)
_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)
_WITHOUT_CHINESE_PUNCTUATION = str.maketrans("", "", string.punctuation + CHINESE_PUNCTUATION)


def english_words(text: str) -> list[str]:
    """Lower-case words without ASCII punctuation and articles. Punctuation goes first: "a-b" is the word "ab"."""
    return _ARTICLES.sub(" ", text.lower().translate(_WITHOUT_PUNCTUATION)).split()


def strip_chinese(text: str) -> str:
    """Lower case, without ASCII and Chinese punctuation and without white space."""
    return "".join(text.lower().translate(_WITHOUT_CHINESE_PUNCTUATION).split())


def overlap_f1(prediction: Sequence[str], reference: Sequence[str]) -> float:
    """Harmonic mean of precision and recall over tokens counted as often as they occur; 0 without a common one."""
    common = (Counter(prediction) & Counter(reference)).total()
    if common == 0:
        return 0.0
    precision, recall = common / len(prediction), common / len(reference)
    return 2 * precision * recall / (precision + recall)
