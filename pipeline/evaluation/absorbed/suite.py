"""Suite `absorbed`: a document of facts read once, and the same questions after more and more text."""

from collections import deque
from collections.abc import Mapping
from itertools import chain, cycle, islice
from typing import Any

import numpy as np
import torch

from pipeline.config import Variant
from pipeline.errors import UserError
from pipeline.evaluation.absorbed.documents import AbsorbedDocument, EncodedFacts, build_document, draw_facts
from pipeline.evaluation.absorbed.sections import make_section
from pipeline.evaluation.absorbed.summary import summarise
from pipeline.evaluation.foreign_memory import new_pair, own_row, read_beside
from pipeline.evaluation.haystack import make_haystack
from pipeline.evaluation.needles.answers import score_answer
from pipeline.evaluation.needles.words import NAMES
from pipeline.evaluation.reader import Reader
from pipeline.evaluation.suite import EvaluationInputs, Record, Section, Unit, default_multiples
from pipeline.evaluation.variant_style import has_control
from pipeline.model.cache import HippocampusCache

DEFAULT_WINDOWS = (1, 2, 4, 8, 16)


class AbsorbedSuite:
    """One unit a document and variant; the document and the text after it are read once, going on.

    A record has `document`, `variant`, `evicted` (at each distance) and `distances`: for each number of windows
    `windows` and `questions`, which has for each fact `recalled` (greedy decoding gives the answer: all its tokens are
    the likeliest) and, of the answer's tokens, given those before, `log_prob` (their sum, nats), `tokens` and `top1`
    (how many are the likeliest). Variants with a memory of their own have `foreign` beside `questions`: the same where
    all was read with what the next document's memory holds instead.

    Raises:
        UserError: more facts than there are names, or a haystack that is too short for the distances.
    """

    name = "absorbed"

    def __init__(self, inputs: EvaluationInputs) -> None:
        config, settings = inputs.config, inputs.config.absorbed
        if settings.facts > len(NAMES):
            raise UserError(f"--absorbed.facts {settings.facts}: at most {len(NAMES)}, each is about another person")
        self._tokenizer, self._window, self._variants = inputs.tokenizer, inputs.window, inputs.variants
        self._settings, self._seed = settings, config.seed
        defaults = default_multiples(inputs.window.window_size, DEFAULT_WINDOWS)
        self._windows = sorted(settings.windows or defaults)
        needed = max(
            self._facts(number).haystack_tokens(self._window, self._num_filler) for number in range(self._num_drawn)
        )
        self._haystack = make_haystack(inputs, needed, "--absorbed.windows")

    @property
    def _num_filler(self) -> int:
        return self._windows[-1] * self._window.window_size

    @property
    def _num_drawn(self) -> int:
        """Another one lends the last document its memory, so that one document has a control too."""
        return self._settings.documents + 1

    def _facts(self, number: int) -> EncodedFacts:
        return draw_facts(self._tokenizer, self._settings.facts, np.random.default_rng([self._seed, number]))

    def document(self, number: int) -> AbsorbedDocument:
        """Document `number`, or one more than there are."""
        generator = np.random.default_rng([self._seed, number, 1])
        return build_document(self._haystack, self._facts(number), self._window, self._num_filler, generator)

    @property
    def settings(self) -> dict[str, Any]:
        return {
            "haystack": self._haystack.fingerprint,
            "seed": self._seed,
            "facts": self._settings.facts,
            "windows": self._windows,
            "control": "another document's memory, from the first token on",
        }

    def units(self) -> list[Unit]:
        numbers = range(self._settings.documents)
        return [Unit(f"{number}/{variant}", (variant,)) for variant in self._variants for number in numbers]

    def measure(self, unit: Unit, readers: Mapping[Variant, Reader]) -> Record:
        (variant,) = unit.variants
        number, reader = int(unit.key.split("/")[0]), readers[variant]
        document = self.document(number)
        other = self.document(number + 1) if has_control(variant, self._variants) else None
        cache, both, distances, evicted = reader.new_cache(), new_pair(reader), [], []
        for windows in self._windows:
            end = len(document.tokens) + windows * self._window.window_size
            context = [*document.tokens, *document.filler][:end]
            reader.read(context[cache.get_seq_length() :], cache)
            found: Record = {"windows": windows, "questions": ask_all(reader, document, context, cache)}
            if other is not None:
                read_on_beside(reader, context, other, both)
                found["foreign"] = ask_all(reader, document, context, own_row(both))
            distances.append(found)
            evicted.append(self._window.num_evicted(len(context)))
        return {"document": number, "variant": variant, "evicted": evicted, "distances": distances}

    def summarise(self, records: Mapping[str, Record]) -> dict[str, Any]:
        return summarise(list(records.values()), self._variants, self._windows)

    def sections(self, summary: dict[str, Any], records: Mapping[str, Record]) -> list[Section]:
        return [make_section(summary, self._settings, self._windows, self._window)]


def read_on_beside(reader: Reader, context: list[int], other: AbsorbedDocument, both: HippocampusCache) -> None:
    """Reads the rest of the context with the memory that `other` and the text after it have at the same place.

    Where `other` is a few tokens shorter, the text after it is repeated at the end of the longest distance.
    """
    start = both.get_seq_length()
    beside = list(islice(chain(other.tokens, cycle(other.filler)), start, len(context)))
    deque(read_beside(reader, torch.tensor(context[start:]), torch.tensor(beside), both), maxlen=0)


def ask_all(
    reader: Reader, document: AbsorbedDocument, context: list[int], cache: HippocampusCache
) -> list[dict[str, Any]]:
    """Each question from a snapshot of the cache, which has seen the context."""
    asked = []
    for question in document.questions:
        scores = score_answer(reader, context, question.question, question.answer, cache.snapshot())
        asked.append(
            {
                "recalled": bool(scores.top1.all()),
                "log_prob": float(scores.log_probs.sum()),
                "tokens": len(scores.log_probs),
                "top1": int(scores.top1.sum()),
            }
        )
    return asked
