"""Settings of the launchers that use a trained model: generate, merge, account, doctor."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pipeline.config.parsing import require


@dataclass
class GenerateConfig:
    """Continue a prompt with an AHN model: text to stdout as it is generated, figures to stderr."""

    model: Path
    """Adapter, merged model, or a plain base model for comparison: a folder or a hub id."""
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
    num_retained_tokens: int | None = None
    """Evicted tokens that each key-value head retains, chosen by the model's scorer; 0: none. Default: the model's
    own."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """dtype of the base. `auto`: bfloat16 on CUDA, float32 on a CPU."""
    check_base: bool = True
    """Compute that AHN is exact on the base's family, on a small copy of it, and refuse it if not. Once: what passed is
    remembered in $AHN_CACHE_DIR (default: ~/.cache/ahn-pipeline)."""
    prefill_chunk: int = 2048
    """Prompt tokens that are absorbed at a time; memory does not depend on the prompt's length."""
    save_cache: Path | None = None
    """Absorb the prompt, write the cache to this file and generate nothing: one document, many questions later."""
    load_cache: Path | None = None
    """Go on from a cache that --save_cache wrote; the prompt is what comes after the document."""

    def __post_init__(self) -> None:
        check_window_flags(self.num_sink_tokens, self.window_size, self.num_retained_tokens)
        require(self.prompt is None or self.prompt_file is None, "--prompt and --prompt_file: give only one")
        require(self.prefill_chunk >= 1, f"--prefill_chunk: must be >= 1, found {self.prefill_chunk}")
        require(self.save_cache is None or self.load_cache is None, "--save_cache and --load_cache: give only one")
        require(
            self.load_cache is None or {self.num_sink_tokens, self.window_size, self.num_retained_tokens} == {None},
            "--load_cache: the cache has the window it was made with; leave out --num_sink_tokens, --window_size and "
            "--num_retained_tokens",
        )
        require(self.max_new_tokens >= 1, f"--max_new_tokens: must be >= 1, found {self.max_new_tokens}")
        require(self.temperature >= 0, f"--temperature: must be >= 0, found {self.temperature}")
        require(0 < self.top_p <= 1, f"--top_p: must be in (0, 1], found {self.top_p}")
        require(
            self.temperature > 0 or self.top_p == 1,
            f"--top_p {self.top_p} has no effect on greedy decoding; give a --temperature above 0 too",
        )


@dataclass
class MergeConfig:
    """Write an adapter in another form: with its base as one transformers folder, or in the published layout."""

    adapter: Path
    """Adapter folder (RUN/adapter), or its hub id."""
    output: Path
    """Folder to write; must not exist yet."""
    layout: Literal["merged", "published"] = "merged"
    """`merged`: base and memories in one model. `published`: the memories alone, as the AHN checkpoints on the hub."""
    base: str | None = None
    """Base model of the adapter. Default: the one that the adapter names."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """dtype of the base in a merged model. `auto`: the one it is stored in. AHN parameters stay float32."""
    check_base: bool = True
    """Compute that AHN is exact on the base's family, on a small copy of it, and refuse it if not. Once: what passed is
    remembered in $AHN_CACHE_DIR (default: ~/.cache/ahn-pipeline)."""

    def __post_init__(self) -> None:
        require(
            self.layout == "merged" or self.dtype == "auto",
            f"--dtype {self.dtype}: --layout published holds no weights of the base, and memories are float32; leave "
            f"it out, or choose --layout merged",
        )


@dataclass
class AccountingConfig:
    """Parameters, FLOPs and cache bytes of full attention against sinks + window + AHN."""

    model: str = "qwen2.5-3b"
    """qwen2.5-3b, qwen2.5-7b, qwen2.5-14b, or a model with a config.json: a folder or a hub id."""
    cell: Literal["gated_delta_net", "delta_net", "mamba2"] = "gated_delta_net"
    """Memory cell."""
    length: int = 128_000
    """Tokens of context."""
    num_sink_tokens: int = 128
    """First tokens that attention keeps."""
    window_size: int = 32_640
    """Most recent tokens that attention keeps, sinks not counted."""
    num_retained_tokens: int = 0
    """Evicted tokens that each key-value head retains."""
    decision_interval: int = 1
    """Tokens between two decisions about which are retained."""
    bytes_per_element: int = 4
    """Of keys, values and state in the paper's cache formula (the paper counts 4)."""
    json: Path | None = None
    """File to write the figures to."""

    def __post_init__(self) -> None:
        check_window_flags(self.num_sink_tokens, self.window_size, self.num_retained_tokens)
        interval = self.decision_interval
        require(interval >= 1, f"--decision_interval: must be >= 1, found {interval}")
        require(
            interval == 1 or self.num_retained_tokens > 0,
            f"--decision_interval {interval}: goes with --num_retained_tokens above 0",
        )
        require(self.length >= 1, f"--length: must be >= 1, found {self.length}")
        require(self.bytes_per_element in (1, 2, 4, 8), "--bytes_per_element: must be 1, 2, 4 or 8")
        if self.json is not None:
            check_output_file("--json", self.json)


@dataclass
class DoctorConfig:
    """Check this machine before the first job: versions, launch environment, kernels, twenty training steps."""

    output: Path = Path("doctor.html")
    """HTML page to write."""

    def __post_init__(self) -> None:
        check_output_file("--output", self.output)


@dataclass
class FamiliesConfig:
    """Check every decoder family of the installed transformers on a small copy, and write the table of the results."""

    families: list[str] = field(default_factory=list)
    """Only these model types. Default: all that AutoModelForCausalLM knows."""
    output: Path = Path("families.md")
    """Markdown table to write."""

    def __post_init__(self) -> None:
        check_output_file("--output", self.output)


def check_output_file(flag: str, path: Path) -> None:
    """Refuses a file that could not be written once the work is done."""
    require(not path.is_dir(), f"{flag} {path}: is a folder; name a file")
    require(path.parent.is_dir(), f"{flag} {path}: there is no folder {path.parent}; make it, or name another file")
    is_writable = os.access(path if path.exists() else path.parent, os.W_OK)
    require(is_writable, f"{flag} {path}: cannot be written; name a file that can")


def check_window_flags(
    num_sink_tokens: int | None, window_size: int | None, num_retained_tokens: int | None = None
) -> None:
    """Refuses a window that cannot be."""
    for flag, value, least in (
        ("num_sink_tokens", num_sink_tokens, 0),
        ("window_size", window_size, 1),
        ("num_retained_tokens", num_retained_tokens, 0),
    ):
        require(value is None or value >= least, f"--{flag}: must be >= {least}, found {value}")
