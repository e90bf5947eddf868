"""Who sees what, and what is evicted when: the only place that says so.

Standard library and numpy only. Within one document, with positions counted from its first token:

- A query at position t attends to key j iff j <= t and (j < num_sink_tokens or t - j < window_size).
- Token j >= num_sink_tokens is evicted just before the query at j + window_size reads; from then on it is in the
  memory. So the query at t reads a memory of exactly the tokens num_sink_tokens .. t - window_size.
- With at most `lossless_budget` tokens nothing is ever evicted.

With `num_retained_tokens` M > 0, token S + i is candidate i: it leaves the window just before the query at S + R + i
reads (event i) and then competes, in each key-value head on its own. From event M + C - 1 on exactly one candidate is
dropped an event, which the memory compresses (retention.py says which). So M + C - 1 candidates more stay visible, the
budget is W = S + R + M + C - 1, and the query at t >= W reads right after write t - W, as without retained tokens.

Source: arXiv 2510.07318, section 3 (sinks + sliding window + compressed memory); retained tokens are this project's.
"""

from dataclasses import dataclass

import numpy as np

SAMPLED_QUERIES = 32


@dataclass(frozen=True)
class WindowSpec:
    """The lossless part of a layer's context: `num_sink_tokens` first and `window_size` most recent tokens, and of
    those between them `num_retained_tokens` a key-value head, chosen anew every `decision_interval` tokens.

    The window counts the current token and does not count the sinks. Without retained tokens the interval is 1.
    """

    num_sink_tokens: int
    window_size: int
    num_retained_tokens: int = 0
    decision_interval: int = 1

    def __post_init__(self) -> None:
        if self.num_retained_tokens < 0 or self.decision_interval < 1:
            raise ValueError(
                f"WindowSpec needs num_retained_tokens >= 0 and decision_interval >= 1, "
                f"got {self.num_retained_tokens} and {self.decision_interval}"
            )
        if self.decision_interval > 1 and not self.num_retained_tokens:
            raise ValueError(f"decision_interval {self.decision_interval} needs num_retained_tokens > 0")
        if self.num_sink_tokens < 0 or self.window_size < 1:
            raise ValueError(
                f"WindowSpec needs num_sink_tokens >= 0 and window_size >= 1, "
                f"got {self.num_sink_tokens} and {self.window_size}"
            )

    def __repr__(self) -> str:
        shown = f"num_sink_tokens={self.num_sink_tokens}, window_size={self.window_size}"
        if self.num_retained_tokens:
            shown += f", num_retained_tokens={self.num_retained_tokens}, decision_interval={self.decision_interval}"
        return f"WindowSpec({shown})"

    @property
    def lossless_budget(self) -> int:
        """W = S + R + M + C - 1: the number of tokens whose keys and values are kept."""
        return self.num_sink_tokens + self.window_size + self.num_held

    @property
    def num_held(self) -> int:
        """M + C - 1: candidates that are retained, wait for a decision or for their turn to be dropped."""
        return self.num_retained_tokens + self.decision_interval - 1

    @property
    def sampling_stride(self) -> int:
        """Every how many positions a query is looked at for the mass that tokens receive: about 32 in a window."""
        return max(1, self.window_size // SAMPLED_QUERIES)

    @property
    def without_retained(self) -> "WindowSpec":
        """The same sinks and window alone."""
        return WindowSpec(self.num_sink_tokens, self.window_size)

    def num_evicted(self, length: int) -> int:
        """Tokens that a document of `length` tokens has evicted by the time its last query reads."""
        return max(0, length - self.lossless_budget)

    def visible(self, query: np.ndarray, key: np.ndarray) -> np.ndarray:
        """Whether a key is the query's own, before it, and a sink or in the window: visible whatever is retained."""
        return (key <= query) & ((key < self.num_sink_tokens) | (query - key < self.window_size))


@dataclass(frozen=True)
class Document:
    """Tokens [start, end) of batch row `row`: one attention, position and memory scope.

    `window` is None for full attention without a memory (the teacher). `num_before` counts tokens of the document
    that come before `start` and are not in the row: their keys and values are given by other means.
    """

    row: int
    start: int
    end: int
    window: WindowSpec | None
    num_before: int = 0

    @property
    def length(self) -> int:
        """Tokens in the row."""
        return self.end - self.start

    @property
    def num_evicted(self) -> int:
        """Tokens evicted while the document's tokens in the row are read, one a query at the row's end."""
        return 0 if self.window is None else min(self.length, self.window.num_evicted(self.num_before + self.length))
