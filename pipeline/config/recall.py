"""Settings of launchers/recall_study.py."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pipeline.config.parsing import require


@dataclass
class RecallTaskConfig:
    """Documents of facts `key value`, filler, and each key once more, and the window that evicts the facts."""

    num_keys: int = 128
    """Key tokens; a document uses each at most once."""
    num_values: int = 128
    """Value tokens."""
    num_fillers: int = 64
    """Filler tokens."""
    num_sink_tokens: int = 4
    """Tokens before the facts; attention keeps them."""
    window_size: int = 32
    """Most recent tokens that attention keeps. One window of distance is this many tokens of filler."""
    mixed_filler: bool = False
    """Filler is drawn from values and unused keys, too, but never a value right after a key: then no token's kind tells
    that it belongs to a fact, only its place after a key does."""

    def __post_init__(self) -> None:
        for name in ("num_keys", "num_values", "num_fillers", "num_sink_tokens", "window_size"):
            require(getattr(self, name) >= 1, f"--task.{name}: must be >= 1, found {getattr(self, name)}")

    @property
    def vocab_size(self) -> int:
        """The sink token, keys, values, fillers."""
        return 1 + self.num_keys + self.num_values + self.num_fillers


@dataclass
class RecallBaseConfig:
    """The base: trained with full attention alone, on the task's documents and on repeated random sequences."""

    family: Literal["qwen3", "qwen2"] = "qwen3"
    """Model family: `qwen3` normalises queries and keys, `qwen2` has biases instead."""
    num_layers: int = 2
    """Decoder layers; induction needs two."""
    hidden_size: int = 128
    """Width of the residual stream."""
    num_heads: int = 2
    """Query heads of a layer."""
    num_kv_heads: int = 2
    """Key and value heads of a layer."""
    head_dim: int = 64
    """Width of a head."""
    intermediate_size: int = 128
    """Width of the feed-forward layers."""
    rope_theta: float = 1e6
    """Base of the rotary positions' frequencies."""
    learning_rate: float = 2e-3
    """Peak learning rate of AdamW."""
    weight_decay: float = 0.05
    """AdamW's weight decay."""
    tokens_per_step: int = 4096
    """Tokens in an optimizer step."""
    max_facts: int = 64
    """Most facts in a document of the last stage."""
    max_distance: int = 16
    """Most windows of filler in a document of the last stage."""
    max_steps: int = 6000
    """Steps after which a base whose curriculum is not done is given up."""
    seed: int = 0
    """Seeds the base's weights and its documents."""

    def __post_init__(self) -> None:
        for name in ("num_layers", "hidden_size", "num_heads", "num_kv_heads", "head_dim", "intermediate_size",
                     "tokens_per_step", "max_facts", "max_distance", "max_steps"):  # fmt: skip
            require(getattr(self, name) >= 1, f"--base.{name}: must be >= 1, found {getattr(self, name)}")
        require(
            self.head_dim % 2 == 0,
            f"--base.head_dim {self.head_dim}: must be even, rotary positions turn pairs of its numbers",
        )
        require(
            self.num_heads % self.num_kv_heads == 0,
            f"--base.num_heads {self.num_heads}: must be a multiple of --base.num_kv_heads {self.num_kv_heads}",
        )


@dataclass
class RecallStudyConfig:
    """Measure how many evicted facts each memory recalls, on a tiny base that needs them.

    A stopped study goes on, and one that is done takes more cells, seeds and numbers of retained tokens: bases, data,
    runs and scores are kept.
    """

    output: Path
    """Folder for bases, data, runs, recall.json and recall.txt."""
    cells: list[str] = field(default_factory=lambda: ["gated_delta_net", "delta_net", "mamba2"])
    """Memory cells to train."""
    init: Literal["published", "long_memory"] = "long_memory"
    """Initial decays of the memories: --memory.init of launchers/train.py."""
    retained: list[int] = field(default_factory=lambda: [0])
    """Numbers M of evicted tokens that a layer's key-value heads retain. For each, every cell is trained beside them
    (--window.retained of launchers/train.py) and also scored without its cell; 0: the cell alone."""
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    """Each seeds a memory's training, its documents and those it is scored on. Intervals need two or more."""
    facts: list[int] = field(default_factory=lambda: [4, 8, 16, 32, 64])
    """Numbers of facts in a document."""
    distances: list[int] = field(default_factory=lambda: [1, 2, 4, 8, 16])
    """Windows of filler between the facts and the questions."""
    questions: int = 256
    """Questions, at least, for each number of facts and distance."""
    train_documents: int = 4800
    """Documents to train a memory on, with the numbers of facts and distances above and all between them."""
    recipe: Path | None = None
    """Training settings of launchers/train.py. Default: launchers/recipes/recall.yaml."""
    task: RecallTaskConfig = field(default_factory=RecallTaskConfig)
    base: RecallBaseConfig = field(default_factory=RecallBaseConfig)

    def __post_init__(self) -> None:
        known = ("gated_delta_net", "delta_net", "mamba2")
        for cell in self.cells:
            require(cell in known, f"--cells: {cell} is none of {', '.join(known)}")
        for name in ("cells", "retained", "seeds", "facts", "distances"):
            values = getattr(self, name)
            require(len(values) > 0, f"--{name}: needs at least one value")
            require(len(set(values)) == len(values), f"--{name}: {values} has one twice")
        for name, least in (("facts", 1), ("distances", 1), ("retained", 0)):
            values = getattr(self, name)
            require(min(values) >= least, f"--{name}: each must be >= {least}, found {values}")
        most = 4 * max(self.facts) + (max(self.distances) - 1) * self.task.window_size
        require(
            max(self.retained) <= most,
            f"--retained: with {max(self.retained)} tokens the longest documents lose none; take at most {most}, or "
            f"longer --distances",
        )
        require(
            max(self.facts) <= self.task.num_keys,
            f"--facts: {max(self.facts)} facts need as many keys, --task.num_keys is {self.task.num_keys}",
        )
        require(
            self.base.max_facts <= self.task.num_keys,
            f"--base.max_facts: {self.base.max_facts} facts need as many keys, --task.num_keys is {self.task.num_keys}",
        )
        require(
            self.recipe is None or self.recipe.is_file(),
            f"--recipe {self.recipe}: no such file; give a YAML file of launchers/train.py's settings",
        )
        for name in ("questions", "train_documents"):
            require(getattr(self, name) >= 1, f"--{name}: must be >= 1, found {getattr(self, name)}")
