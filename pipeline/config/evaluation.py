"""Settings of launchers/run_eval.py."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from pipeline.config.inference import check_window_flags
from pipeline.config.parsing import require
from pipeline.config.variants import Variant, parse_variant

SuiteName = Literal["heldout", "needles", "absorbed", "efficiency", "probing", "lveval", "infinitebench"]
FetchName = Literal["lveval", "infinitebench", "longbench", "longbench2", "ruler", "babilong"]
NeedleTask = Literal["single", "multi_key", "multi_value", "passkey", "variable_tracking"]
OWN_SUITES: tuple[SuiteName, ...] = ("heldout", "needles", "absorbed", "efficiency", "probing")


def _require_all_positive(flag: str, values: list[int] | None) -> None:
    require(values is None or len(values) > 0, f"--{flag}: needs at least one value")
    require(values is None or min(values) >= 1, f"--{flag}: each must be >= 1, found {values}")


def _require_distinct(flag: str, values: list | None) -> None:
    require(values is None or len(values) > 0, f"--{flag}: needs at least one value")
    require(values is None or len(set(values)) == len(values), f"--{flag}: {values} has one twice")


@dataclass
class NeedlesConfig:
    """Facts hidden in a haystack, asked for at its end."""

    tasks: list[NeedleTask] = field(default_factory=lambda: list(get_args(NeedleTask)))
    """`single`: one fact; `multi_key`: others like it around; `multi_value`: one key with several values; `passkey`;
    `variable_tracking`: which variables have the value of the first, through a chain of assignments."""
    lengths: list[int] | None = None
    """Tokens of a whole prompt. Default: 2, 4 and 8 times the lossless budget W, or what any prompt needs;
    up to 131,072."""
    depths: list[float] = field(default_factory=lambda: [0.0, 0.5, 1.0])
    """Where the needle lies: 0 at the beginning of the haystack (after the sinks), 1 at its end. Of several needles
    this is the first, the others follow up to the end."""
    examples: int = 1
    """Prompts for each task, length and depth."""

    def __post_init__(self) -> None:
        for name in ("tasks", "lengths", "depths"):
            _require_distinct(f"needles.{name}", getattr(self, name))
        _require_all_positive("needles.lengths", self.lengths)
        require(
            all(0 <= depth <= 1 for depth in self.depths),
            f"--needles.depths: each must be in [0, 1], found {self.depths}",
        )
        require(self.examples >= 1, f"--needles.examples: must be >= 1, found {self.examples}")


@dataclass
class AbsorbedConfig:
    """Documents of facts, absorbed, and the same questions after more and more text."""

    documents: int = 6
    """Documents, each absorbed once."""
    facts: int = 4
    """Facts in a document, and questions at each distance."""
    windows: list[int] | None = None
    """Text between the document and its questions, in windows (--window_size tokens each). Default: 1, 2, 4, 8 and 16,
    up to 131,072 tokens."""

    def __post_init__(self) -> None:
        for name in ("documents", "facts"):
            require(getattr(self, name) >= 1, f"--absorbed.{name}: must be >= 1, found {getattr(self, name)}")
        _require_distinct("absorbed.windows", self.windows)
        _require_all_positive("absorbed.windows", self.windows)


@dataclass
class EfficiencyConfig:
    """Time and memory of reading and of generating against the length of the context."""

    lengths: list[int] | None = None
    """Tokens of context. Default: 1, 2, 4, 8 and 16 times the lossless budget W, up to 131,072."""
    new_tokens: int = 16
    """Tokens that are generated, and timed, after each context."""

    def __post_init__(self) -> None:
        _require_all_positive("efficiency.lengths", self.lengths)
        require(self.new_tokens >= 1, f"--efficiency.new_tokens: must be >= 1, found {self.new_tokens}")


@dataclass
class ProbingConfig:
    """What the memories keep, and which layers' memories matter."""

    documents: int = 4
    """Held-out pieces to probe."""
    length: int | None = None
    """First tokens of each that are read. Default: 4 times the lossless budget W."""
    zeroing_length: int | None = None
    """First tokens of each that are read once a layer, with that layer's memory zeroed. Default: 3 times W, at most
    --probing.length."""

    def __post_init__(self) -> None:
        for name in ("documents", "length", "zeroing_length"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"--probing.{name}: must be >= 1, found {value}")


@dataclass
class EvalConfig:
    """Measure a model with a memory beside full attention, its window alone and baselines of the same size.

    Under torchrun, deepspeed or mpiexec the work is shared out over the processes. A stopped evaluation goes on from
    what is in --output, and suites and variants may be added to one that is done.
    """

    model: Path | None = None
    """Adapter, merged model, or a plain base (give its --window_size), for baselines alone: a folder or a hub id."""
    output: Path | None = None
    """Folder for report.html, report.json, summary.txt, examples.jsonl."""
    suites: list[SuiteName] = field(default_factory=lambda: list(OWN_SUITES))
    """What to measure. `heldout`, `needles`, `absorbed`, `efficiency` and `probing` need no download; `lveval` and
    `infinitebench` read --data_root. Other benchmarks: python -m pipeline.evaluation.lm_eval_run --help."""
    variants: list[Variant] | None = None
    """What to compare. `full`: full attention (`full_yarn`: with YaRN); `window`: sinks + window; `compressive_max`,
    `compressive_mean`: a Compressive Transformer's memory (of 4 tokens) of the AHN's size; `memory_off`: the AHN with
    its writes disabled; `ahn`. With M tokens more, any M >= 1: `wider64`: a wider window; `retained64`: evicted ones
    that the model's scorer chooses, `retained64_ahn`: with the AHN for the others; `random64`: drawn by --seed;
    `received64`: by the attention mass that they received (H2O); `oracle64`, of `heldout` alone: by what later queries
    will give them, which only the text's future tells. Default: full window compressive_max compressive_mean memory_off
    ahn; of a model that retains M tokens full window widerM retainedM retainedM_ahn ahn."""
    data: str | None = None
    """Packed held-out documents written by launchers/prepare.py, a folder or its URL: for `heldout` and `probing`."""
    data_root: Path | None = None
    """Folder of the benchmarks' files, as --fetch lays it out."""
    fetch: list[FetchName] = field(default_factory=list)
    """Only download these benchmarks' files to --data_root, where they are not there yet; evaluates nothing."""
    haystack: Path | None = None
    """UTF-8 text of `needles`, `absorbed` and `efficiency`. Default: the Python language reference, repeated where it
    is too short."""
    seed: int = 0
    """Draws needles, facts and what stands around them, and the tokens of `random64`."""
    base: str | None = None
    """Base model of an adapter. Default: the one that the adapter names."""
    num_sink_tokens: int | None = None
    """First tokens that attention keeps. Default: the model's own."""
    window_size: int | None = None
    """Most recent tokens that attention keeps, sinks not counted. Default: the model's own."""
    num_retained_tokens: int | None = None
    """M of the default --variants (`widerM`, `retainedM`, `retainedM_ahn`); 0: those without. Default: the model's
    own."""
    yarn_factor: float = 4.0
    """Of `full_yarn`: by how much YaRN extends the base's max_position_embeddings."""
    prefill_chunk: int = 2048
    """Tokens that are read at a time."""
    data_cache: Path | None = None
    """Local folder for shards of data behind a URL. Default: $AHN_DATA_CACHE, or ~/.cache/ahn-pipeline/shards."""
    data_cache_bytes: int = 100_000_000_000
    """Bound on that folder; the shards that were not read for the longest time make room."""
    max_documents: int | None = None
    """`heldout`: only the first so many documents that are long enough."""
    pieces_per_document: int | None = None
    """`heldout`: only the so many longest pieces of a document that packing has cut."""
    max_examples: int | None = None
    """`lveval`, `infinitebench`: only the first so many examples of each task."""
    tasks: list[str] | None = None
    """`lveval`, `infinitebench`: only these tasks, by name or by a pattern such as "*_128k". Default: all."""
    max_context: int | None = None
    """`lveval`, `infinitebench`: tokens of prompt and answer together; a longer prompt loses its middle. Default: every
    prompt is read whole, however long."""
    chat: bool = False
    """`lveval`, `infinitebench`: wrap each prompt as one user message in the tokenizer's chat template."""
    allow_no_evictions: bool = False
    """`needles`, `lveval`, `infinitebench`: measure also where no prompt is longer than sinks + window, so that the
    memory is never read; the result says so. Default: that is refused."""
    needles: NeedlesConfig = field(default_factory=NeedlesConfig)
    absorbed: AbsorbedConfig = field(default_factory=AbsorbedConfig)
    efficiency: EfficiencyConfig = field(default_factory=EfficiencyConfig)
    probing: ProbingConfig = field(default_factory=ProbingConfig)
    run: Path | None = None
    """Training run folder whose loss curve goes into the report."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """dtype of the base. `auto`: bfloat16 on CUDA, float32 on a CPU."""
    check_base: bool = True
    """Compute that AHN is exact on the base's family, on a small copy of it, and refuse it if not. Once: what passed is
    remembered in $AHN_CACHE_DIR (default: ~/.cache/ahn-pipeline)."""
    logits_chunk_size: int = 256
    """Positions whose logits exist at one time."""
    local_rank: int = -1
    """Set by the deepspeed launcher."""

    def __post_init__(self) -> None:
        check_window_flags(self.num_sink_tokens, self.window_size, self.num_retained_tokens)
        if self.variants is not None:
            require(
                self.num_retained_tokens is None,
                f"--num_retained_tokens {self.num_retained_tokens} goes with the default --variants; leave it out, and "
                f"name the number in --variants, as in retained64_ahn",
            )
            self.variants = [name for part in self.variants for name in part.split(",") if name]
            for name in self.variants:
                parse_variant(name)
        for name in ("suites", "variants"):
            _require_distinct(name, getattr(self, name))
        for name in ("data_cache_bytes", "max_documents", "pieces_per_document", "max_examples", "max_context",
                     "logits_chunk_size", "prefill_chunk"):  # fmt: skip
            value = getattr(self, name)
            require(value is None or value >= 1, f"--{name}: must be >= 1, found {value}")
        require(self.seed >= 0, f"--seed: must be >= 0, found {self.seed}")
        require(self.yarn_factor >= 1, f"--yarn_factor: must be >= 1, found {self.yarn_factor}")
        if self.fetch:
            require(self.data_root is not None, "--fetch: give --data_root, the folder to download to")
        else:
            require(self.model is not None, "--model: give an adapter, a merged model or a base")
            require(self.output is not None, "--output: give a folder for the report")


@dataclass
class PaperConfig:
    """List the AHN paper's tables and figures: the commands that redraw each, and what scaled-down runs here gave."""

    output: Path | None = None
    """Markdown file to write, in place of the terminal."""
