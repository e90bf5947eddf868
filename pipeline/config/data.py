"""Settings of launchers/prepare.py and of the demo."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pipeline.config.parsing import require


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
