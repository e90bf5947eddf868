"""Suite `needles`: sentences hidden in a long text and asked for at its end, in the window and evicted apart."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

from pipeline.config import NeedleTask, Variant
from pipeline.errors import UserError
from pipeline.evaluation.evictions import require_evictions
from pipeline.evaluation.haystack import make_haystack
from pipeline.evaluation.needles.answers import mentions, score_answer
from pipeline.evaluation.needles.documents import EncodedTexts, NeedlePrompt, build_prompt, encode_texts
from pipeline.evaluation.needles.sections import make_section
from pipeline.evaluation.needles.summary import summarise
from pipeline.evaluation.needles.tasks import NeedleTexts, draw_texts, make_generator
from pipeline.evaluation.positions import trained_positions
from pipeline.evaluation.reader import Reader
from pipeline.evaluation.suite import EvaluationInputs, Record, Section, Unit, default_multiples
from pipeline.model.loading import load_config

DEFAULT_WINDOWS = (2, 4, 8)
MEANING = 2
"""Of records: another number where equal settings give other prompts, or another count of what is evicted."""
TOKENS_BEYOND_THE_ANSWER = 3
"""What a model may write besides the right answer's number of tokens."""


@dataclass(frozen=True)
class Cell:
    """One prompt: a place in the grid, and the number of the example there."""

    task: NeedleTask
    length: int
    depth: float
    example: int

    @property
    def key(self) -> str:
        return f"{self.task}/len{self.length}/depth{self.depth}/{self.example}"


class NeedlesSuite:
    """One unit a prompt and variant. `memory_off` is left out: nothing is written, so it answers as `window` does.

    A record has the fields of `Cell`, `variant`, `evicted`, `text` (what was written, greedily) and `needles`: for
    each answer `answer`, whether it is `evicted`, `recalled` (it is a whole word of `text`), and of the answer's
    tokens, given the right ones before, `log_prob` (their sum, nats), `tokens` and `top1` (how many are the likeliest
    of the vocabulary).

    Raises:
        UserError: lengths that are too short for their questions, or a haystack that is too short for them.
    """

    name = "needles"

    def __init__(self, inputs: EvaluationInputs) -> None:
        config, self._settings = inputs.config, inputs.config.needles
        self._tokenizer, self._window, self._seed = inputs.tokenizer, inputs.window, config.seed
        self._variants = tuple(v for v in inputs.variants if v != "memory_off")
        self._lengths = self._settings.lengths or self._default_lengths(inputs.largest_budget)
        self._check_lengths()
        if not config.allow_no_evictions:
            asked = " ".join(map(str, self._lengths))
            evicting = self._window, self._variants, inputs.decision_interval
            require_evictions(f"--needles.lengths {asked}", max(self._lengths), *evicting)
        self._haystack = make_haystack(inputs, max(self._lengths), "--needles.lengths")
        self._cells = {cell.key: cell for cell in self._grid(self._lengths)}
        self._max_positions = trained_positions(load_config(inputs.files.tokenizer))

    def _default_lengths(self, budget: int) -> list[int]:
        """Multiples of W, or of the longest least length where a window is too small for any question."""
        least = max(self._least_length(cell) for cell in self._grid([windows * budget for windows in DEFAULT_WINDOWS]))
        unit = max(budget, least)
        return [windows * unit for windows in default_multiples(unit, DEFAULT_WINDOWS)]

    def _check_lengths(self) -> None:
        for length in self._lengths:
            least = max(self._least_length(cell) for cell in self._grid([length]))
            if length < least:
                raise UserError(
                    f"--needles.lengths {length}: the sinks ({self._window.num_sink_tokens} tokens), needles and their "
                    f"question need {least}"
                )

    def _grid(self, lengths: list[int]) -> Iterator[Cell]:
        settings = self._settings
        return (Cell(*at) for at in product(settings.tasks, lengths, settings.depths, range(settings.examples)))

    def _encode(self, cell: Cell) -> tuple[NeedleTexts, EncodedTexts]:
        texts = draw_texts(cell.task, cell.length, cell.depth, cell.example, self._seed)
        return texts, encode_texts(self._tokenizer, texts)

    def _least_length(self, cell: Cell) -> int:
        return self._encode(cell)[1].least_length(self._window.num_sink_tokens)

    @property
    def settings(self) -> dict[str, Any]:
        return {"haystack": self._haystack.fingerprint, "seed": self._seed, "meaning": MEANING}

    def units(self) -> list[Unit]:
        return [Unit(f"{key}/{variant}", (variant,)) for variant in self._variants for key in self._cells]

    def measure(self, unit: Unit, readers: Mapping[Variant, Reader]) -> Record:
        (variant,) = unit.variants
        cell = self._cells[unit.key.rsplit("/", 1)[0]]
        texts, encoded = self._encode(cell)
        prompt = self._build(cell, texts, encoded)
        text, needles = self._ask(readers[variant], prompt, texts.answers)
        evicted = self._window.num_evicted(len(prompt.tokens))
        return {**vars(cell), "variant": variant, "evicted": evicted, "text": text, "needles": needles}

    def _build(self, cell: Cell, texts: NeedleTexts, encoded: EncodedTexts) -> NeedlePrompt:
        generator = make_generator(**vars(cell), seed=self._seed, stream=2)
        return build_prompt(self._haystack, encoded, texts.depths, cell.length, self._window.num_sink_tokens, generator)

    def _ask(self, reader: Reader, prompt: NeedlePrompt, answers: tuple[str, ...]) -> tuple[str, list[Record]]:
        """What the model writes after the prompt, and its scores for each answer."""
        cache, answer = reader.new_cache(), prompt.asked.answer
        reader.read(prompt.tokens[:-1], cache)
        scores = score_answer(reader, prompt.tokens[:-1], prompt.tokens[-1:], answer, cache.snapshot())
        written = reader.generate(prompt.tokens[-1:], cache, len(answer) + TOKENS_BEYOND_THE_ANSWER)
        text = self._tokenizer.decode(written)
        evicted = prompt.evicted(self._window)
        needles = [
            {
                "answer": answers[i],
                "evicted": evicted[i],
                "recalled": mentions(text, answers[i]),
                "log_prob": float(scores.log_probs[span].sum()),
                "tokens": len(scores.log_probs[span]),
                "top1": int(scores.top1[span].sum()),
            }
            for i, span in enumerate(prompt.asked.spans)
        ]
        return text, needles

    def summarise(self, records: Mapping[str, Record]) -> dict[str, Any]:
        bound = math.inf if self._max_positions is None else self._max_positions
        beyond = [length for length in self._lengths if length > bound]
        found = summarise(list(records.values()), self._variants, self._settings.tasks)
        return {**found, "lengths_beyond_trained_positions": beyond}

    def sections(self, summary: dict[str, Any], records: Mapping[str, Record]) -> list[Section]:
        return [make_section(summary, list(records.values()), self._window, self._max_positions)] if records else []
