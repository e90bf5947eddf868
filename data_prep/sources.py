"""Where documents come from: the sources of one data folder, each with its weight and its way of being read."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from data_prep.strict_yaml import build_strictly, load_yaml
from pipeline.data.shard_format import DataError

DOCUMENT_TEMPLATE = "{document}\n\n{content}"
NAME_PATTERN = re.compile(r"[A-Za-z0-9_-]+")
DOCUMENT_EXTENSIONS = (".txt", ".md", ".markdown", ".rst", ".tex", ".org", ".adoc")
CODE_EXTENSIONS = (
    *(".py", ".pyx", ".pyi", ".c", ".h", ".cc", ".cpp", ".cxx", ".hh", ".hpp", ".cu", ".cuh", ".rs", ".go", ".zig"),
    *(".java", ".kt", ".scala", ".cs", ".fs", ".swift", ".m", ".mm", ".dart", ".js", ".jsx", ".mjs", ".ts", ".tsx"),
    *(".vue", ".rb", ".php", ".pl", ".pm", ".lua", ".r", ".jl", ".sh", ".bash", ".ps1", ".sql", ".hs", ".ml", ".mli"),
    *(".ex", ".exs", ".erl", ".clj", ".lisp", ".el", ".scm", ".f90", ".asm", ".s", ".v", ".sv", ".vhd", ".proto"),
)
ROW_EXTENSIONS = (".jsonl", ".ndjson", ".parquet", ".arrow")
DEFAULT_EXTENSIONS = (*DOCUMENT_EXTENSIONS, *CODE_EXTENSIONS, *ROW_EXTENSIONS)


@dataclass
class DatasetSource:
    """A Hugging Face dataset."""

    path: str
    """Hub id, or a folder: written by `save_to_disk`, or one that `datasets.load_dataset` reads."""
    name: str | None = None
    """Configuration of the dataset."""
    split: str = "train"
    """Split to read."""
    revision: str | None = None
    """Commit, tag or branch on the hub."""
    streaming: bool = False
    """Read without first storing the whole dataset; what is read is kept in the output folder until the run ends."""


@dataclass
class Conversations:
    """How rows that hold messages become documents with a loss mask."""

    messages_field: str = "messages"
    """List of {"role", "content"}; the loss is taken on the assistant's tokens and the end of each turn."""
    answers_field: str | None = None
    """List of answers (or one): the first is appended as the assistant's turn when the messages end with the user's."""
    document_field: str | None = None
    """Long text that the conversation is about (ChatQA2's `document`)."""
    document_template: str = DOCUMENT_TEMPLATE
    """How it joins the first user message: `{document}` and that message's `{content}`."""


@dataclass
class Source:
    """One source: files (`inputs`) or a `dataset`, not both."""

    name: str
    """Its name in the manifest and in mixtures."""
    inputs: list[str] = field(default_factory=list)
    """Files, folders (recursive), globs, or @FILE with one of these a line."""
    dataset: DatasetSource | None = None
    """A Hugging Face dataset."""
    weight: float | None = None
    """Share of an epoch's samples, relative to the other sources'. Default: every sample once an epoch."""
    text_field: str = "text"
    """Field (JSONL) or column (parquet, Arrow, datasets) that holds the text."""
    conversations: Conversations | None = None
    """The rows hold messages, not text."""
    extensions: list[str] = field(default_factory=lambda: list(DEFAULT_EXTENSIONS))
    """Files that are read from folders; a compressed one (.gz .zst .bz2 .xz) by the extension before that."""
    exclude: list[str] = field(default_factory=list)
    """Names, paths and globs of files and folders to leave out; each must match one (data_prep/excludes.py)."""
    min_bytes: int = 0
    """Leave out files smaller than this."""
    folder: Path = field(default=Path(), init=False, compare=False)
    """Where relative paths of `exclude` start: the working folder, or that of the sources file. No key of that file."""


def load_sources(path: Path) -> list[Source]:
    """The sources of a YAML file `sources: [{name: ..., inputs: [...], weight: ...}, ...]`; its keys are Source's.

    Relative paths of `inputs` (also of the list in `@list`, not those in its lines) and of `exclude` are relative to
    the file's folder; so is a dataset's path if that folder holds it, else it is a hub id.

    Raises:
        DataError: not such a file, or what `check_sources` refuses.
    """
    where = f"--sources {path}"
    content = load_yaml(path, where)
    if not isinstance(content, dict) or set(content) != {"sources"} or not isinstance(content["sources"], list):
        raise DataError(f"{where}: expected one key `sources` with a list of sources")
    given = [
        build_strictly(Source, entry, f"{where}: source {_label(entry, number)}")
        for number, entry in enumerate(content["sources"], 1)
    ]
    check_sources(given, where)
    return [_resolve(source, path.parent) for source in given]


def check_sources(sources: Sequence[Source], where: str) -> None:
    """Refuses sources that contradict themselves or each other.

    Args:
        where: begins the error message: flag and file.

    Raises:
        DataError: in one line.
    """
    if not sources:
        raise DataError(f"{where}: lists no source")
    for source in sources:
        _check_source(source, f"{where}: source {source.name!r}")
    names = [source.name for source in sources]
    if repeated := next((name for name in names if names.count(name) > 1), None):
        raise DataError(f"{where}: two sources are called {repeated!r}; every name may be used once")
    weighted = [source.name for source in sources if source.weight is not None]
    if weighted and len(weighted) < len(sources):
        missing = ", ".join(repr(source.name) for source in sources if source.weight is None)
        raise DataError(f"{where}: {missing} has no weight but others do; give every source one, or none")


def _check_source(source: Source, where: str) -> None:
    if not NAME_PATTERN.fullmatch(source.name):
        raise DataError(f"{where}: a name is made of letters, digits, - and _")
    if bool(source.inputs) == (source.dataset is not None):
        found = "both" if source.inputs else "neither"
        raise DataError(f"{where}: give `inputs` or `dataset`, found {found}")
    if source.weight is not None and not (math.isfinite(source.weight) and source.weight > 0):
        raise DataError(f"{where}: weight must be > 0, found {source.weight}; leave out a source that has none")
    if source.dataset is not None:
        for name, default in (("exclude", []), ("extensions", list(DEFAULT_EXTENSIONS)), ("min_bytes", 0)):
            if getattr(source, name) != default:
                raise DataError(f"{where}: {name} is for `inputs`; a `dataset` is read whole (see its `split`)")
    if source.min_bytes < 0:
        raise DataError(f"{where}: min_bytes must be >= 0, found {source.min_bytes}")
    if wrong := [extension for extension in source.extensions if not extension.startswith(".")]:
        raise DataError(f"{where}: extensions begin with a dot, found {wrong[0]!r}")
    settings = source.conversations
    if settings is not None and settings.document_field is not None:
        for placeholder in ("{document}", "{content}"):
            if settings.document_template.count(placeholder) != 1:
                raise DataError(f"{where}: document_template must hold {placeholder} once")


def _label(entry: object, number: int) -> str:
    name = entry.get("name") if isinstance(entry, dict) else None
    return repr(name) if isinstance(name, str) else str(number)


def _resolve(source: Source, folder: Path) -> Source:
    """Makes relative paths those below `folder`."""
    inputs = [_below(given, folder) for given in source.inputs]
    dataset = source.dataset
    if dataset is not None and (folder / dataset.path).exists():
        dataset = replace(dataset, path=str(folder / dataset.path))
    resolved = replace(source, inputs=inputs, dataset=dataset)
    resolved.folder = folder
    return resolved


def _below(given: str, folder: Path) -> str:
    if "://" in given or "::" in given:
        return given
    return f"@{folder / given[1:]}" if given.startswith("@") else str(folder / given)
