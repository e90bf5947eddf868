"""Suite `efficiency`: time and memory of reading and of generating, against the length of the context."""

from collections.abc import Mapping
from dataclasses import asdict, fields
from itertools import cycle, islice
from typing import Any

import torch

from pipeline.config import Variant
from pipeline.errors import UserError
from pipeline.evaluation.efficiency.sections import make_section
from pipeline.evaluation.efficiency.summary import summarise
from pipeline.evaluation.efficiency.timing import Timing, account_context, time_context
from pipeline.evaluation.placement import name_device
from pipeline.evaluation.reader import Reader
from pipeline.evaluation.suite import EvaluationInputs, Record, Section, Unit, default_multiples

DEFAULT_WINDOWS = (1, 2, 4, 8, 16)
AS_COSTLY_AS_ANOTHER = ("memory_off", "full_yarn")
"""They compute what `ahn` and `full` compute."""


class EfficiencySuite:
    """One unit a variant and length, all taken by one process.

    A record has `variant`, `length`, `evicted`, `device` and `threads` (of the process, on the CPU), the fields of
    `Timing`, all None where memory did not suffice, and `accounted` with those of `Accounted` or None.

    Raises:
        UserError: the haystack is empty.
    """

    name = "efficiency"

    def __init__(self, inputs: EvaluationInputs) -> None:
        config = inputs.config
        if len(inputs.haystack) == 0:
            raise UserError(f"--haystack {config.haystack}: `efficiency` reads it, and it holds no token")
        self._haystack, self._window = inputs.haystack, inputs.window
        self._new_tokens, self._prefill_chunk = config.efficiency.new_tokens, config.prefill_chunk
        budget = inputs.largest_budget
        multiples = [count * budget for count in default_multiples(budget, DEFAULT_WINDOWS)]
        self._lengths = sorted(set(config.efficiency.lengths or multiples))
        self._variants = [v for v in inputs.variants if v not in AS_COSTLY_AS_ANOTHER]

    @property
    def settings(self) -> dict[str, Any]:
        return {"new_tokens": self._new_tokens, "prefill_chunk": self._prefill_chunk}

    def units(self) -> list[Unit]:
        return [Unit(f"{v}/{n}", (v,), on_first_rank=True) for v in self._variants for n in self._lengths]

    def measure(self, unit: Unit, readers: Mapping[Variant, Reader]) -> Record:
        (variant,) = unit.variants
        length, reader = int(unit.key.split("/")[1]), readers[variant]
        tokens = list(islice(cycle(self._haystack), length + 1 + self._new_tokens))
        accounted = account_context(reader, length, self._window)
        timing = time_context(reader, tokens, self._new_tokens)
        return {
            "variant": variant,
            "length": length,
            "evicted": self._window.num_evicted(length),
            "device": name_device(),
            "threads": torch.get_num_threads(),
            **(dict.fromkeys(f.name for f in fields(Timing)) if timing is None else asdict(timing)),
            "accounted": None if accounted is None else asdict(accounted),
        }

    def summarise(self, records: Mapping[str, Record]) -> dict[str, Any]:
        return summarise(list(records.values()))

    def sections(self, summary: dict[str, Any], records: Mapping[str, Record]) -> list[Section]:
        return [make_section(summary, self._window, self._new_tokens, self._prefill_chunk)] if records else []
