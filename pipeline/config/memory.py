"""What a trained memory is: its cell, and what attention keeps beside it."""

from dataclasses import dataclass, field
from typing import Literal

from pipeline.config.parsing import require


@dataclass
class MemoryConfig:
    """The AHN itself (one per decoder layer)."""

    cell: Literal["gated_delta_net", "delta_net", "mamba2"] = "gated_delta_net"
    """Recurrent cell that compresses evicted tokens."""
    init: Literal["published", "long_memory"] = "published"
    """Initial decays: `published` are the paper's (Mamba2 A = 1 .. H; GatedDeltaNet A ~ U(0, 16), dt log-uniform in
    [1e-3, 0.1]), with which most heads forget within a few tokens; `long_memory`: from 2^-4 to 2^-12 a token, head
    after head."""


@dataclass
class WindowConfig:
    """What attention keeps losslessly while training: drawn for each sample from (seed, sample index)."""

    budgets: list[int] | None = None
    """Candidates for the lossless budget W (sinks + window). Default: powers of two from 32, L/8 < W < L."""
    sinks: list[int] = field(default_factory=lambda: [0, 32, 64, 128, 512, 2048, 4096])
    """Candidates for the number of sink tokens S; kept when S <= W/2."""
    retained: list[int] = field(default_factory=lambda: [0])
    """Candidates for the number M of evicted tokens that each key-value head retains, chosen by a score; drawn last and
    kept when S + R + M < L, with the window R as it is. 0: none, as published."""
    decision_interval: int = 1
    """Tokens between two decisions about which are retained; as many more wait for the next one."""
    inference_sinks: int = 128
    """Sink tokens that the trained adapter uses for generation unless told otherwise."""
    inference_window: int = 32640
    """Recent tokens (sinks not counted) that the trained adapter keeps for generation."""
    inference_retained: int | None = None
    """Evicted tokens that the trained adapter retains for generation. Default: the most of --window.retained."""

    def __post_init__(self) -> None:
        for flag, values, least in (("budgets", self.budgets, 2), ("sinks", self.sinks, 0)):
            ok = values is None or (len(values) > 0 and min(values) >= least)
            require(ok, f"--window.{flag}: needs at least one value, each >= {least}, found {values}")
        require(
            self.budgets is None or min(self.sinks) <= min(self.budgets) // 2,
            f"--window.sinks: the smallest, {min(self.sinks)}, must be at most half of the smallest "
            f"--window.budgets ({self.budgets})",
        )
        require(self.inference_sinks >= 0, f"--window.inference_sinks: must be >= 0, found {self.inference_sinks}")
        require(self.inference_window >= 1, f"--window.inference_window: must be >= 1, found {self.inference_window}")
        self._check_retained()

    def _check_retained(self) -> None:
        retained, interval, inference = self.retained, self.decision_interval, self.inference_retained
        require(
            len(retained) > 0 and min(retained) >= 0 and len(set(retained)) == len(retained),
            f"--window.retained: needs at least one value, each >= 0 and named once, found {retained}",
        )
        require(interval >= 1, f"--window.decision_interval: must be >= 1, found {interval}")
        require(
            self.has_scorer or interval == 1,
            f"--window.decision_interval {interval}: goes with --window.retained above 0",
        )
        require(inference is None or inference >= 0, f"--window.inference_retained: must be >= 0, found {inference}")
        require(
            self.has_scorer or not inference,
            f"--window.inference_retained {inference}: nothing learns which tokens to retain; give --window.retained",
        )

    @property
    def has_scorer(self) -> bool:
        """Whether any token is ever retained, so that something must choose it."""
        return max(self.retained) > 0

    @property
    def num_inference_retained(self) -> int:
        """M of the trained adapter."""
        return max(self.retained) if self.inference_retained is None else self.inference_retained

    @property
    def least_held(self) -> int:
        """M + C - 1 of the fewest retained tokens that may be drawn: by so much W is larger than S + R at least."""
        return min(number + self.interval(number) - 1 for number in self.retained)

    def interval(self, num_retained_tokens: int) -> int:
        """C beside so many retained tokens: 1 beside none."""
        return self.decision_interval if num_retained_tokens else 1
