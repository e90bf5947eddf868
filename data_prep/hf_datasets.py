"""Hugging Face datasets as input files: the Arrow files they consist of, or their rows written as JSONL first.

Rows are written (spooled) where there is nothing on this machine to read at random: a streamed dataset, or a slice.
A spool that was stopped goes on after its last complete file. Nothing of a dataset's own code is ever run.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Union

import pyarrow as pa
from tqdm import tqdm

from data_prep.hf_checks import check_columns, check_folder
from data_prep.inputs import InputFile
from data_prep.readers.columns import names_of, optional_names_of
from data_prep.readers.messages import without_nulls
from data_prep.sources import Source
from pipeline.data.shard_format import DataError
from pipeline.data.shard_io import TEMPORARY_SUFFIX, write_file

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

AnyDataset = Union["Dataset", "IterableDataset"]
SAVED_DATASET, SAVED_SPLITS = "state.json", "dataset_dict.json"


def dataset_inputs(source: Source, spool: Path, spool_bytes: int) -> list[InputFile]:
    """The files that hold the rows of `source.dataset`; their names do not depend on the machine.

    A folder written by `save_to_disk` is read as it is; one that holds a single Dataset is its own only split.

    Args:
        source: with `dataset` set.
        spool: folder for rows that must be written first. Call this in one process only.
        spool_bytes: size at which a spooled file ends, in bytes.

    Raises:
        DataError: no such dataset, configuration, split or column, no rows, no way to the hub, a folder of which
            `datasets` would read some files only, or a spool of other settings.
    """
    spooled = _Spool(source, spool, spool_bytes)
    if spooled.is_finished:  # nothing more is asked of the hub
        return spooled.inputs
    with _named(source):
        dataset = _load(source)
        check_columns(source, dataset)
        if files := _arrow_files(source, dataset):
            return files
        spooled.write(dataset)
    return spooled.inputs


@contextmanager
def _named(source: Source) -> Iterator[None]:
    """Turns the errors of datasets and of the hub into one line that names the source."""
    from datasets.exceptions import DatasetsError

    try:
        yield
    except DataError:
        raise
    except (OSError, ValueError, LookupError, RuntimeError, DatasetsError, pa.ArrowException) as error:
        cause = f"; {error.__cause__}" if error.__cause__ is not None else ""
        reason = " ".join(f"{error}{cause}".split())
        # Its parsers take less than ours: no integer of more than 64 bits beside text, no key twice.
        hint = "; `inputs` reads JSONL, parquet and Arrow by itself" if Path(source.dataset.path).is_dir() else ""
        raise DataError(
            f"source {source.name!r}: dataset {source.dataset.path} cannot be read ({type(error).__name__}: {reason})"
            f"{hint}"
        ) from error


def _load(source: Source) -> AnyDataset:
    from datasets import load_dataset, load_from_disk

    wanted = source.dataset
    folder = Path(wanted.path)
    if (folder / SAVED_DATASET).is_file():
        return load_from_disk(str(folder))
    if (folder / SAVED_SPLITS).is_file():
        splits = load_from_disk(str(folder))
        if wanted.split not in splits:
            raise DataError(
                f"source {source.name!r}: {folder} has no split {wanted.split!r}; it has {', '.join(splits)}"
            )
        return splits[wanted.split]
    if folder.is_dir():
        check_folder(source, folder)
    return load_dataset(
        wanted.path, wanted.name, split=wanted.split, revision=wanted.revision, streaming=wanted.streaming
    )


def _arrow_files(source: Source, dataset: AnyDataset) -> list[InputFile]:
    """The dataset's own files, if they hold its rows and no others: not so for a slice or a stream."""
    from datasets import Dataset

    if not isinstance(dataset, Dataset):
        return []
    paths = [Path(entry["filename"]).absolute() for entry in dataset.cache_files]
    if sum(map(_count_rows, paths)) != len(dataset):
        return []
    return [
        InputFile(source.name, f"file://{path}", f"{number:05d}.arrow", "arrow", path.stat().st_size)
        for number, path in enumerate(paths)
    ]


def _count_rows(path: Path) -> int:
    with pa.memory_map(str(path)) as mapped, pa.ipc.open_stream(mapped) as reader:
        return sum(batch.num_rows for batch in reader)


class _Spool:
    """Rows as JSONL files `{source}-{number}.jsonl`; `{source}.json` says which of them are complete."""

    def __init__(self, source: Source, folder: Path, file_bytes: int) -> None:
        self._source, self._folder, self._file_bytes = source, folder, file_bytes
        self._columns = names_of(source)
        self._request = asdict(source.dataset) | {"columns": self._columns, "file_bytes": file_bytes}
        self._request["optional_columns"] = optional_names_of(source)
        self._num_rows: list[int] = []
        self.is_finished = False
        self._restore()

    @property
    def inputs(self) -> list[InputFile]:
        """The complete files."""
        paths = [self._path(number) for number in range(len(self._num_rows))]
        return [
            InputFile(self._source.name, f"file://{path}", f"{number:05d}.jsonl", "jsonl", path.stat().st_size)
            for number, path in enumerate(paths)
        ]

    def write(self, dataset: AnyDataset) -> None:
        """Writes the rows that are not yet in complete files."""
        self._folder.mkdir(parents=True, exist_ok=True)
        if dataset.column_names:
            optional = optional_names_of(self._source)
            dataset = dataset.select_columns(
                [*self._columns, *(name for name in optional if name in dataset.column_names)]
            )
        num_done = sum(self._num_rows)
        rows = iter(dataset.skip(num_done))
        with tqdm(rows, desc=f"storing {self._source.name}", initial=num_done, unit="row", unit_scale=True) as progress:
            lines = map(self._line, progress)
            while not self.is_finished:
                self._write_file(lines)

    def _write_file(self, lines: Iterator[bytes]) -> None:
        num_rows = 0
        path = self._path(len(self._num_rows))
        temporary = path.with_name(f"{path.name}{TEMPORARY_SUFFIX}")
        with open(temporary, "wb") as file:
            while file.tell() < self._file_bytes and (line := next(lines, None)) is not None:
                file.write(line)
                num_rows += 1
            self.is_finished = file.tell() < self._file_bytes
            file.flush()
            os.fsync(file.fileno())
        if num_rows:
            temporary.replace(path)
            self._num_rows.append(num_rows)
        else:
            temporary.unlink()
        state = {"request": self._request, "num_rows": self._num_rows, "is_finished": self.is_finished}
        write_file(self._state_path, json.dumps(state, indent=1).encode())

    def _line(self, row: dict) -> bytes:
        try:
            values = {name: row.get(name) for name in self._columns}
            values |= {name: _beside(row[name]) for name in optional_names_of(self._source) if name in row}
            # A message may hold fields that nothing reads, of any type.
            unread = None if self._source.conversations is None else _describe_type
            line = json.dumps(values, ensure_ascii=False, default=unread)
        except TypeError as error:
            columns = ", ".join(self._columns)
            raise DataError(f"source {self._source.name!r}: columns {columns} hold no text ({error})") from error
        return line.encode("utf-8", "surrogatepass") + b"\n"  # the reader counts what is no UTF-8

    def _restore(self) -> None:
        """Takes up a spool that was stopped; one that cannot be trusted is written again from the start."""
        try:
            state = json.loads(self._state_path.read_bytes())
            request, num_rows, is_finished = state["request"], state["num_rows"], state["is_finished"]
            complete = all(type(n) is int and n > 0 and self._path(k).is_file() for k, n in enumerate(num_rows))
        except (FileNotFoundError, ValueError, LookupError, TypeError, RecursionError):
            return
        if not complete or type(is_finished) is not bool:
            return
        if request != self._request:
            raise DataError(
                f"{self._state_path} belongs to other settings of source {self._source.name!r}; name a new --output"
            )
        self._num_rows, self.is_finished = num_rows, is_finished

    def _path(self, number: int) -> Path:
        return self._folder.absolute() / f"{self._source.name}-{number:05d}.jsonl"

    @property
    def _state_path(self) -> Path:
        return self._folder / f"{self._source.name}.json"


def _beside(value: object) -> object:
    """The value of a column that is not required, or True in place of one that JSON cannot hold: it is not read."""
    try:
        json.dumps(found := without_nulls(value))
    except (TypeError, ValueError):
        return True
    return found


def _describe_type(value: object) -> dict[str, str]:
    """In place of a value that JSON cannot hold; no reader takes it for a text, a number or a list."""
    return {"no JSON": type(value).__name__}
