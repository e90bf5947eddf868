"""Documents that need distance: sinks, facts `key value`, filler, then every fact once more, in another order.

The answer to a key is the value that followed it among the facts. By the first question at least one window of filler
has passed, so every fact has been evicted from a window.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers

from pipeline.config import RecallTaskConfig

SINK = 0
CARRIED = 8
"""Filler beyond the windows: a base may keep a fact a few tokens after it, and these must have left the window too."""


@dataclass(frozen=True)
class RecallDocuments:
    """B documents alike in shape: `input_ids` int64 [B, T]; the token after each of `questions` int64 [num_facts] is
    the answer to it, and `input_ids[:, : questions[0]]` is the document without its questions."""

    input_ids: np.ndarray
    num_facts: int

    @property
    def questions(self) -> np.ndarray:
        length = self.input_ids.shape[1]
        return np.arange(length - 2 * self.num_facts, length, 2)

    @property
    def answers(self) -> np.ndarray:
        """int64 [B, num_facts]."""
        return self.input_ids[:, self.questions + 1]


def make_documents(
    task: RecallTaskConfig, count: int, num_facts: int, num_fillers: int, generator: np.random.Generator
) -> RecallDocuments:
    """`count` documents of `num_facts` facts, their keys distinct, and `num_fillers` tokens of filler."""
    first_key, first_value = 1, 1 + task.num_keys
    first_filler = first_value + task.num_values
    keys, unused = np.split(_distinct(first_key, task.num_keys, (count, task.num_keys), generator), [num_facts], 1)
    values = generator.integers(first_value, first_filler, (count, num_facts))
    pairs = np.stack([keys, values], -1)
    asked = np.stack([generator.permutation(row) for row in pairs])
    parts = [
        np.full((count, task.num_sink_tokens), SINK),
        pairs.reshape(count, -1),
        _draw_filler(task, unused, num_fillers, generator),
        asked.reshape(count, -1),
    ]
    return RecallDocuments(np.concatenate(parts, 1), num_facts)


def _draw_filler(
    task: RecallTaskConfig, unused_keys: np.ndarray, num_fillers: int, generator: np.random.Generator
) -> np.ndarray:
    """int64 [B, num_fillers]; `unused_keys` [B, n] are those that the rest of each document has not."""
    first_value, count = 1 + task.num_keys, len(unused_keys)
    first_filler, size = first_value + task.num_values, (count, num_fillers)
    fillers = generator.integers(first_filler, task.vocab_size, size)
    if not task.mixed_filler:
        return fillers
    others = np.broadcast_to(np.arange(first_value, task.vocab_size), (count, task.num_values + task.num_fillers))
    pool = np.concatenate([unused_keys, others], 1)
    tokens = np.take_along_axis(pool, generator.integers(0, pool.shape[1], size), 1)
    # A fact's value comes before the filler and a key after it, so its ends make no pair.
    follows_key = np.pad(tokens[:, :-1] < first_value, ((0, 0), (1, 0)))
    is_value = (tokens >= first_value) & (tokens < first_filler)
    return np.where(follows_key & is_value, fillers, tokens)


def make_repeats(task: RecallTaskConfig, count: int, length: int, generator: np.random.Generator) -> np.ndarray:
    """A sink, `length` distinct tokens of any kind, and the same again: int64 [count, 1 + 2 length]."""
    tokens = _distinct(1, task.vocab_size - 1, (count, length), generator)
    return np.concatenate([np.full((count, 1), SINK), tokens, tokens], 1)


def write_corpus(
    path: Path, task: RecallTaskConfig, count: int, facts: list[int], distances: list[int], seed: int
) -> None:
    """JSON lines of single documents, numbers of facts and fillers log-uniform between the ends of the lists."""
    generator = np.random.default_rng(seed)
    words = np.array(vocabulary(task))
    with open(path, "w", encoding="utf-8") as lines:
        for _ in range(count):
            num_facts = log_uniform(min(facts), max(facts), generator)
            num_fillers = log_uniform(*(count_fillers(task, end(distances)) for end in (min, max)), generator)
            document = make_documents(task, 1, num_facts, num_fillers, generator)
            lines.write(json.dumps({"text": " ".join(words[document.input_ids[0]])}) + "\n")


def document_length(task: RecallTaskConfig, num_facts: int, distance: int) -> int:
    """Tokens of a document of `num_facts` facts, `distance` windows away."""
    return task.num_sink_tokens + 4 * num_facts + count_fillers(task, distance)


def count_fillers(task: RecallTaskConfig, distance: int) -> int:
    """Tokens between the facts and the first question, `distance` windows away."""
    return distance * task.window_size + CARRIED


def log_uniform(low: int, high: int, generator: np.random.Generator) -> int:
    """An integer of [low, high]."""
    return round(np.exp(generator.uniform(np.log(low), np.log(high))))


def vocabulary(task: RecallTaskConfig) -> list[str]:
    """The word of every token."""
    return ["sink", *_words("key", task.num_keys), *_words("value", task.num_values), *_words("fill", task.num_fillers)]


def make_tokenizer(task: RecallTaskConfig) -> Tokenizer:
    """One token a word."""
    words = {word: token for token, word in enumerate(vocabulary(task))}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="sink"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tokenizer


def _words(kind: str, count: int) -> Iterator[str]:
    return (f"{kind}{i}" for i in range(count))


def _distinct(first: int, count: int, shape: tuple[int, int], generator: np.random.Generator) -> np.ndarray:
    return first + generator.random((shape[0], count)).argsort(1)[:, : shape[1]]
