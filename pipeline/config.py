"""Every setting of every launcher: one typed tree each, defaults < YAML file (--config) < command line.

Keys are strict: an unknown one is refused by name. The resolved tree is dumped into the run folder as config.yaml.
Standard library and jsonargparse only, so that a wrong flag is reported before anything heavy is imported.
"""

import json
import sys
from argparse import ArgumentError
from dataclasses import asdict, dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import Any, Literal, TypeVar, get_type_hints

from jsonargparse import ArgumentParser, set_parsing_settings

from pipeline.errors import UserError

Config = TypeVar("Config")


class ConfigError(UserError):
    """A setting that is unknown, of the wrong type, out of range or in conflict with another."""


def require(condition: bool, message: str) -> None:
    """Raises ConfigError(message) unless `condition`."""
    if not condition:
        raise ConfigError(message)


@dataclass
class MemoryConfig:
    """The AHN itself (one per decoder layer)."""

    cell: Literal["gated_delta_net"] = "gated_delta_net"
    """Recurrent cell that compresses evicted tokens."""
    init: Literal["published"] = "published"
    """Initial gates: `published` is the paper's (A ~ U(0, 16), dt log-uniform in [1e-3, 0.1])."""


@dataclass
class WindowConfig:
    """What attention keeps losslessly while training: drawn for each sample from (seed, sample index)."""

    budgets: list[int] | None = None
    """Candidates for the lossless budget W (sinks + window). Default: powers of two from 32, L/8 < W < L."""
    sinks: list[int] = field(default_factory=lambda: [0, 32, 64, 128, 512, 2048, 4096])
    """Candidates for the number of sink tokens S; kept when S <= W/2."""
    inference_sinks: int = 128
    """Sink tokens that the trained adapter uses for generation unless told otherwise."""
    inference_window: int = 32640
    """Recent tokens (sinks not counted) that the trained adapter keeps for generation."""

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


@dataclass
class TrainConfig:
    """Optimisation. These fields own batch, accumulation, learning rate, clipping and dtype; the DeepSpeed JSON
    owns ZeRO, offload and communication."""

    max_steps: int = 740
    """Optimizer steps."""
    global_batch_size: int = 128
    """Samples per optimizer step over all ranks."""
    micro_batch_size: int = 1
    """Samples per forward on one rank; accumulation = global / (micro x ranks)."""
    learning_rate: float = 1e-4
    """Peak learning rate, after warm-up."""
    warmup_ratio: float = 0.1
    """Share of max_steps spent on linear warm-up; cosine to zero follows."""
    weight_decay: float = 0.1
    """AdamW weight decay; never on A_log, dt_bias and norms."""
    adam_betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's decay rates of the first and second moment."""
    clip_grad_norm: float = 1.0
    """Global gradient norm above which gradients are scaled down."""
    loss: Literal["kl", "ce"] = "kl"
    """`kl`: forward KL to the full-attention teacher. `ce`: next-token cross entropy."""
    loss_normalisation: Literal["tokens", "samples"] = "tokens"
    """Mean over all supervised tokens of a step, or mean of per-sample means (as published)."""
    loss_chunk_size: int = 512
    """Positions whose logits exist at one time."""
    base_dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """dtype of the frozen base. AHN parameters are always float32."""
    activation_checkpointing: bool = True
    """Recompute decoder layers in the backward pass."""
    seed: int = 0
    """Seeds data order, window draws and AHN initialisation."""
    save_every: int = 100
    """Steps between checkpoints; one more is written at the end and on SIGTERM or SIGUSR1."""
    keep_checkpoints: int = 2
    """Newest checkpoints that stay on disk."""

    def __post_init__(self) -> None:
        for name in (
            "max_steps",
            "global_batch_size",
            "micro_batch_size",
            "loss_chunk_size",
            "save_every",
            "keep_checkpoints",
        ):
            require(getattr(self, name) >= 1, f"--train.{name}: must be >= 1, found {getattr(self, name)}")
        require(self.learning_rate > 0, f"--train.learning_rate: must be > 0, found {self.learning_rate}")
        require(self.clip_grad_norm > 0, f"--train.clip_grad_norm: must be > 0, found {self.clip_grad_norm}")
        require(self.weight_decay >= 0, f"--train.weight_decay: must be >= 0, found {self.weight_decay}")
        require(0 <= self.warmup_ratio < 1, f"--train.warmup_ratio: must be in [0, 1), found {self.warmup_ratio}")

    def grad_accum_steps(self, dp_size: int) -> int:
        """Micro-batches per optimizer step and rank.

        Raises:
            ConfigError: the global batch does not divide.
        """
        per_pass = self.micro_batch_size * dp_size
        require(
            self.global_batch_size % per_pass == 0,
            f"--train.global_batch_size {self.global_batch_size} is not a multiple of --train.micro_batch_size "
            f"{self.micro_batch_size} x {dp_size} data-parallel ranks; nearest that is: "
            f"{max(1, self.global_batch_size // per_pass) * per_pass}",
        )
        return self.global_batch_size // per_pass


@dataclass
class TrainRunConfig:
    """Distil an AHN into a frozen base: `deepspeed --num_gpus N launchers/train.py ...`."""

    model: str
    """Base model: a local folder or a hub id."""
    data: Path
    """Packed data folder written by launchers/prepare.py."""
    output: Path
    """Run folder: config.yaml, metrics.jsonl, checkpoints/, adapter/, report.html."""
    ds_config: Path
    """DeepSpeed JSON (ZeRO stage, offload, communication), e.g. ds_configs/zero2.json."""
    resume: Literal["auto", "never"] = "auto"
    """`auto`: go on from the newest checkpoint in --output if there is one. `never`: refuse a used folder."""
    local_rank: int = -1
    """Set by the deepspeed launcher."""
    memory: MemoryConfig = field(default_factory=MemoryConfig)
    window: WindowConfig = field(default_factory=WindowConfig)
    train: TrainConfig = field(default_factory=TrainConfig)


@dataclass
class EvalConfig:
    """Measure a trained AHN on held-out documents against full attention and against its window alone.

    Under torchrun, deepspeed or mpiexec the documents are shared out over the processes.
    """

    model: Path
    """Adapter folder or merged model folder."""
    data: Path
    """Packed held-out documents written by launchers/prepare.py."""
    output: Path
    """Folder for report.html, report.json, documents.jsonl; a stopped evaluation goes on from what is there."""
    base: str | None = None
    """Base model of an adapter. Default: the one that the adapter names."""
    num_sink_tokens: int | None = None
    """First tokens that attention keeps. Default: the model's own."""
    window_size: int | None = None
    """Most recent tokens that attention keeps, sinks not counted. Default: the model's own."""
    max_documents: int | None = None
    """Evaluate only the first so many documents that are long enough."""
    pieces_per_document: int | None = None
    """Evaluate only the so many longest pieces of a document that packing has cut."""
    run: Path | None = None
    """Training run folder whose loss curve goes into the report."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """dtype of the base. `auto`: bfloat16 on CUDA, float32 on a CPU."""
    logits_chunk_size: int = 256
    """Positions whose logits exist at one time."""
    local_rank: int = -1
    """Set by the deepspeed launcher."""

    def __post_init__(self) -> None:
        _check_window_flags(self.num_sink_tokens, self.window_size)
        for name in ("max_documents", "pieces_per_document", "logits_chunk_size"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"--{name}: must be >= 1, found {value}")


@dataclass
class GenerateConfig:
    """Continue a prompt with an AHN model: text to stdout as it is generated, figures to stderr."""

    model: Path
    """Adapter folder, merged model folder, or a plain base model for comparison."""
    prompt: str | None = None
    """The prompt itself. Without --prompt and --prompt_file it is read from stdin."""
    prompt_file: Path | None = None
    """UTF-8 file that holds the prompt."""
    base: str | None = None
    """Base model of an adapter. Default: the one that the adapter names."""
    max_new_tokens: int = 256
    """Tokens to generate at most."""
    temperature: float = 0.0
    """0: greedy. Above: sample at this temperature."""
    top_p: float = 1.0
    """Sample only from the most likely tokens that hold this share of the probability."""
    seed: int = 0
    """Seeds sampling."""
    chat: bool = False
    """Wrap the prompt as one user message in the tokenizer's chat template."""
    num_sink_tokens: int | None = None
    """First tokens that attention keeps. Default: the model's own."""
    window_size: int | None = None
    """Most recent tokens that attention keeps, sinks not counted. Default: the model's own."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """dtype of the base. `auto`: bfloat16 on CUDA, float32 on a CPU."""

    def __post_init__(self) -> None:
        _check_window_flags(self.num_sink_tokens, self.window_size)
        require(self.prompt is None or self.prompt_file is None, "--prompt and --prompt_file: give only one")
        require(self.max_new_tokens >= 1, f"--max_new_tokens: must be >= 1, found {self.max_new_tokens}")
        require(self.temperature >= 0, f"--temperature: must be >= 0, found {self.temperature}")
        require(0 < self.top_p <= 1, f"--top_p: must be in (0, 1], found {self.top_p}")
        require(
            self.temperature > 0 or self.top_p == 1,
            f"--top_p {self.top_p} has no effect on greedy decoding; give a --temperature above 0 too",
        )


@dataclass
class MergeConfig:
    """Write a base and its adapter as one transformers folder."""

    adapter: Path
    """Adapter folder (RUN/adapter)."""
    output: Path
    """Folder to write; must not exist yet."""
    base: str | None = None
    """Base model of the adapter. Default: the one that the adapter names."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """dtype of the base's weights; AHN parameters stay float32."""


def _check_window_flags(num_sink_tokens: int | None, window_size: int | None) -> None:
    require(
        num_sink_tokens is None or num_sink_tokens >= 0, f"--num_sink_tokens: must be >= 0, found {num_sink_tokens}"
    )
    require(window_size is None or window_size >= 1, f"--window_size: must be >= 1, found {window_size}")


@dataclass
class ListSourcesConfig:
    """List the standard library's sources for the demo, split into train.txt and heldout.txt."""

    output: Path
    """Folder for the two lists."""
    min_bytes: int = 30 * 1024
    """Leave out files smaller than this."""
    held_out_every: int = 4
    """Hold out every so many files."""

    def __post_init__(self) -> None:
        require(self.held_out_every >= 2, f"--held_out_every: must be >= 2, found {self.held_out_every}")


@dataclass
class DemoConfig:
    """The whole way on a small real model and two CPU cores: data, training, evaluation, generation.

    Phases that are finished are not done again.
    """

    output: Path | None = None
    """Folder for everything. Default: runs/demo in the repository."""
    num_documents: int = 16
    """Held-out documents to evaluate on, one piece of 1,024 tokens each."""
    max_steps: int | None = None
    """Training steps. Default: the recipe's."""


@dataclass
class FetchModelConfig:
    """Fetch the demo's model, SmolLM2-135M-Instruct, as a Hugging Face folder."""

    output: Path | None = None
    """Folder to write. Default: .cache/smollm2-135m in the repository."""


@dataclass
class PrepareConfig:
    """Tokenise documents and pack them into shards for training."""

    inputs: list[str]
    """Files, folders (recursive), globs, or @FILE with one of these a line: text, JSONL (.gz, .zst), parquet."""
    tokenizer: str
    """The base model's tokenizer: a folder with tokenizer.json, or a hub id."""
    output: Path
    """Folder for the packed data. A run that was stopped goes on where it was."""
    seq_len: int = 24576
    """Tokens in a sample."""
    packing: Literal["concat"] = "concat"
    """`concat`: documents follow one another and are cut every --seq_len tokens."""
    append_eos: bool = True
    """Append the tokenizer's end-of-text token to every document."""
    text_field: str = "text"
    """Field (JSONL) or column (parquet) that holds the text."""
    extensions: list[str] = field(
        default_factory=lambda: [".txt", ".md", ".rst", ".py", ".jsonl", ".ndjson", ".parquet"]
    )
    """Files that are read from folders; a compressed one (.gz .zst .bz2 .xz) by the extension before that."""
    exclude: list[str] = field(default_factory=list)
    """Globs of file names or paths to leave out (`*` also matches slashes)."""
    min_bytes: int = 0
    """Leave out files smaller than this."""
    unit_bytes: int = 8 << 20
    """Input that makes one work unit: what one worker does at a time, and what a stopped run loses."""
    shard_bytes: int = 256 << 20
    """Size at which a work unit's next shard begins."""
    num_workers: int = 1
    """Processes. The result does not depend on it."""

    def __post_init__(self) -> None:
        require(len(self.inputs) > 0, "--inputs: name at least one file, folder or glob")
        for name, least in (
            ("seq_len", 2), ("min_bytes", 0), ("unit_bytes", 1), ("shard_bytes", 1), ("num_workers", 1)
        ):  # fmt: skip
            require(getattr(self, name) >= least, f"--{name}: must be >= {least}, found {getattr(self, name)}")
        for extension in self.extensions:
            require(extension.startswith("."), f"--extensions: each begins with a dot, found {extension!r}")


def _join_list_values(cls: type, argv: list[str]) -> list[str]:
    """Turns `--inputs a b` into the one value `["a", "b"]` that the parser takes for a list of strings."""
    lists = {f"--{name}" for name, hint in get_type_hints(cls).items() if hint == list[str]}
    joined: list[str] = []
    position = 0
    while position < len(argv):
        flag = argv[position]
        position += 1
        joined.append(flag)
        if flag in lists:
            values = list(takewhile(lambda value: not value.startswith("--"), argv[position:]))
            position += len(values)
            plain = len(values) == 1 and values[0].startswith("[")
            joined += values if plain else [json.dumps(values)]
    return joined


def parse_cli(cls: type[Config], argv: list[str] | None = None) -> Config:
    """Builds a `cls` from its defaults, then --config FILE, then flags (later wins).

    Raises:
        ConfigError: one line that names the flag or key.
        SystemExit: after --help.
    """
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(description=(cls.__doc__ or "").strip(), exit_on_error=False, allow_abbrev=False)
    parser.add_argument("--config", action="config", help="YAML file with any of the settings below.")
    parser.add_class_arguments(cls, fail_untyped=True)
    try:
        parsed = parser.parse_args(_join_list_values(cls, sys.argv[1:] if argv is None else argv))
    except (ArgumentError, TypeError, ValueError, KeyError) as error:
        raise ConfigError(" ".join(str(error).split())) from error
    parsed.pop("config", None)
    return cls(**parser.instantiate_classes(parsed).as_dict())


def to_plain(config: Any) -> Any:
    """The tree as plain YAML and JSON types, for config.yaml."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: plain(v) for k, v in value.items()}
        if isinstance(value, (list, tuple)):
            return [plain(v) for v in value]
        return str(value) if isinstance(value, Path) else value

    return plain(asdict(config))
