"""The tasks, as text: sentences to hide, a question, its answers. After RULER (arXiv 2404.06654), in fewer tokens."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import get_args

import numpy as np

from pipeline.config import NeedleTask
from pipeline.evaluation.needles.words import NOUNS, draw, draw_number, draw_variables

NUM_DISTRACTORS, NUM_VALUES, NUM_VARIABLES = 3, 3, 3


@dataclass(frozen=True)
class NeedleTexts:
    """`sentences[i]` says `answers[i]`; sentences beyond these distract. `depths`: of each sentence. `question` ends
    where the answers follow, a blank before each and `separator` between them."""

    sentences: tuple[str, ...]
    depths: tuple[float, ...]
    question: str
    answers: tuple[str, ...]
    separator: str = ","


def draw_texts(task: NeedleTask, length: int, depth: float, example: int, seed: int) -> NeedleTexts:
    """The texts of one prompt, the same for equal arguments."""
    return DRAWS[task](depth, make_generator(task, length, depth, example, seed, stream=1))


def make_generator(
    task: NeedleTask, length: int, depth: float, example: int, seed: int, stream: int
) -> np.random.Generator:
    """Random numbers of one prompt that are independent of those of others, and of its other streams (1, 2, ...)."""
    place = [get_args(NeedleTask).index(task), length, round(depth * 1e6), example]
    return np.random.default_rng([seed, *place, stream])


def _single(depth: float, generator: np.random.Generator) -> NeedleTexts:
    (key,) = draw(NOUNS, 1, generator)
    value = draw_number(int(generator.integers(5, 8)), generator)
    return NeedleTexts((_number_sentence(key, value),), (depth,), _number_question(key), (value,))


def _multi_key(depth: float, generator: np.random.Generator) -> NeedleTexts:
    """Others like it are spread over the whole text."""
    keys = draw(NOUNS, 1 + NUM_DISTRACTORS, generator)
    values = [draw_number(int(generator.integers(5, 8)), generator) for _ in keys]
    sentences = tuple(map(_number_sentence, keys, values))
    elsewhere = ((i + 0.5) / NUM_DISTRACTORS for i in range(NUM_DISTRACTORS))
    return NeedleTexts(sentences, (depth, *elsewhere), _number_question(keys[0]), (values[0],))


def _multi_value(depth: float, generator: np.random.Generator) -> NeedleTexts:
    key, *values = draw(NOUNS, 1 + NUM_VALUES, generator)
    sentences = tuple(f"One of the special magic words for {key} is {value}." for value in values)
    question = (
        f"What are all the special magic words for {key} mentioned in the text? The special magic words for {key} "
        f"mentioned in the text are"
    )
    return NeedleTexts(sentences, _from(depth, NUM_VALUES), question, tuple(values))


def _passkey(depth: float, generator: np.random.Generator) -> NeedleTexts:
    """After arXiv 2305.16300."""
    value = draw_number(5, generator)
    sentence = f"The pass key is {value}. Remember it. {value} is the pass key."
    return NeedleTexts((sentence,), (depth,), "What is the pass key? The pass key is", (value,))


def _variable_tracking(depth: float, generator: np.random.Generator) -> NeedleTexts:
    value, names = draw_number(5, generator), draw_variables(NUM_VARIABLES, generator)
    assigned = [value, *(f"VAR {name}" for name in names)]
    sentences = tuple(f"VAR {name} = {right}." for name, right in zip(names, assigned, strict=False))
    question = (
        f"Find all variables that are assigned the value {value} in the text above. They are, separated by commas: VAR"
    )
    return NeedleTexts(sentences, _from(depth, NUM_VARIABLES), question, tuple(names), separator=", VAR")


DRAWS: dict[NeedleTask, Callable[[float, np.random.Generator], NeedleTexts]] = {
    "single": _single,
    "multi_key": _multi_key,
    "multi_value": _multi_value,
    "passkey": _passkey,
    "variable_tracking": _variable_tracking,
}


def _number_sentence(key: str, value: str) -> str:
    return f"The special magic number for {key} is {value}."


def _number_question(key: str) -> str:
    return (
        f"What is the special magic number for {key} mentioned in the text? The special magic number for {key} "
        f"mentioned in the text is"
    )


def _from(depth: float, count: int) -> tuple[float, ...]:
    """The first at `depth`, the others evenly over the text after it."""
    return tuple(depth + (1 - depth) * i / count for i in range(count))
