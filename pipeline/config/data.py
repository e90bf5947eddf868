"""Settings of launchers/prepare.py and of the demo."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pipeline.config.parsing import require


@dataclass
class PrepareConfig:
    """Tokenise documents and pack them into shards for training."""

    tokenizer: str
    """The base model's tokenizer: a folder with tokenizer.json, or a hub id."""
    output: Path
    """Folder for the packed data. A run that was stopped goes on where it was."""
    inputs: list[str] = field(default_factory=list)
    """Files, folders (recursive), globs, or @FILE with one of these a line: text, code, JSONL, parquet, Arrow; text and
    JSONL also as .gz, .zst, .bz2, .xz."""
    sources: Path | None = None
    """Instead of --inputs: YAML file that lists sources with weights, Hugging Face datasets and instruction data."""
    seq_len: int = 24576
    """Tokens in a sample."""
    packing: Literal["best_fit", "concat", "none"] = "best_fit"
    """`best_fit`: a document is cut only where it is longer than --seq_len. `concat`: documents follow one another and
    are cut every --seq_len tokens. `none`: every document is a sample of its own (longer ones: several)."""
    append_eos: bool = True
    """Append the tokenizer's end-of-text token to every document."""
    special_tokens_in_text: Literal["plain", "special"] = "plain"
    """What a special token spelled out in a document becomes: the tokens of its letters, or the special token."""
    min_doc_tokens: int = 0
    """Leave out documents with fewer tokens."""
    max_doc_tokens: int | None = None
    """Leave out documents with more tokens. Default: keep all."""
    dedup: Literal["count", "exact"] = "count"
    """Documents whose text an earlier one has: `exact` leaves them out, `count` only counts them."""
    text_field: str = "text"
    """Field (JSONL) or column (parquet, Arrow) that holds the text of --inputs."""
    messages_field: str | None = None
    """Field of --inputs that holds conversations: rendered with the chat template, loss on the assistant's tokens."""
    extensions: list[str] = field(default_factory=list)
    """Files that are read from folders; a compressed one by the extension before that. Default: text, Markdown, code,
    JSONL, parquet and Arrow."""
    exclude: list[str] = field(default_factory=list)
    """Files and folders of --inputs to leave out: names, paths (absolute, or relative to the working folder or to an
    input folder) and globs of these (in a path `*` also matches slashes). One that matches nothing is an error."""
    min_bytes: int = 0
    """Leave out files of --inputs smaller than this."""
    unit_bytes: int = 8 << 20
    """Input that makes one work unit: what one worker does at a time, and what a stopped run loses."""
    shard_bytes: int = 256 << 20
    """Size at which a work unit's next shard begins."""
    num_workers: int = 1
    """Processes. The result does not depend on it."""
    mpi: bool = False
    """Work on the ranks of `mpiexec -n N` or srun instead; rank 0 hands out the work. The result is the same."""
    tokenizer_backend: Literal["auto", "tokenizers"] = "auto"
    """`auto`: tiktoken where it is proven to give the same ids. The result does not depend on it."""

    def __post_init__(self) -> None:
        require(bool(self.inputs) != (self.sources is not None), "give either --inputs or --sources, and not both")
        for name, least in (
            ("seq_len", 2), ("min_bytes", 0), ("min_doc_tokens", 0), ("unit_bytes", 1), ("shard_bytes", 1),
            ("num_workers", 1),
        ):  # fmt: skip
            require(getattr(self, name) >= least, f"--{name}: must be >= {least}, found {getattr(self, name)}")
        longest = self.max_doc_tokens
        require(
            longest is None or longest >= max(1, self.min_doc_tokens),
            f"--max_doc_tokens: must be >= 1 and >= --min_doc_tokens {self.min_doc_tokens}, found {longest}",
        )
        for extension in self.extensions:
            require(extension.startswith("."), f"--extensions: each begins with a dot, found {extension!r}")
        require(not self.mpi or self.num_workers == 1, "--num_workers: with --mpi the number of ranks decides")
        for name, default in (("text_field", "text"), ("messages_field", None), ("extensions", []), ("exclude", []),
                              ("min_bytes", 0)):  # fmt: skip
            require(
                self.sources is None or getattr(self, name) == default,
                f"--{name} is for --inputs; with --sources set it for each source in {self.sources}",
            )


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
