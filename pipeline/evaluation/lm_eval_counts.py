"""What lm-eval's requests made a model read: how many there were, cut, evicting, or too long; by task."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from pipeline.evaluation.evictions import NOTHING, describe_evictions, summarise_evictions


@dataclass
class RequestCounts:
    """Of one process, or of several: requests by task.

    `truncated`: whose context was cut. `evicted`: by task and the tokens that sinks + window have evicted by the end of
    what is read before the answer. `beyond`: that need more positions than full attention has.
    """

    requests: Counter[str] = field(default_factory=Counter)
    truncated: Counter[str] = field(default_factory=Counter)
    evicted: Counter[tuple[str, int]] = field(default_factory=Counter)
    beyond: Counter[str] = field(default_factory=Counter)

    def __add__(self, other: "RequestCounts") -> "RequestCounts":
        return RequestCounts(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def evictions(self) -> dict[str, dict[str, Any]]:
        """`summarise_evictions` of each task."""
        tasks: dict[str, Counter[int]] = {}
        for (task, evicted), number in self.evicted.items():
            tasks.setdefault(task, Counter())[evicted] += number
        return {task: summarise_evictions(of_task) for task, of_task in tasks.items()}


def describe_run(facts: Mapping[str, Any]) -> str:
    """Lines to stand above lm-eval's table of results.

    Args:
        facts: lm-eval's `config` of the results of our model.
    """
    if facts["evicted"] is None:
        return "\n".join(_describe_full_attention(facts))
    if not facts["evicted"]:
        return "Nothing was read: all answers come from --use_cache."
    lines = [f"{task}: {describe_evictions(found)}" for task, found in facts["evicted"].items()]
    return "\n".join(lines if any(found["max"] for found in facts["evicted"].values()) else [NOTHING])


def _describe_full_attention(facts: Mapping[str, Any]) -> list[str]:
    total, cut, beyond = (
        sum(facts[name].values()) for name in ("num_requests", "num_truncated", "num_beyond_positions")
    )
    lines = ["Full attention: nothing is evicted."]
    if cut:
        lines.append(
            f"{cut:,} of {total:,} requests lost part of their context to max_length = {facts['max_length']:,}, so "
            f"they are not those that a model with a window reads; give both the same max_length, or a base with YaRN "
            f"in its config."
        )
    if beyond:
        lines.append(
            f"{beyond:,} of {total:,} requests are longer than the {facts['positions']:,} positions that the base was "
            f"trained on, so its scores say what it does there and not what full attention can do; give a base with "
            f"YaRN in its config."
        )
    return lines
