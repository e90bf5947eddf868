"""What `datasets` says nothing of: files and columns that it leaves out, or takes for something else."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Union

from data_prep.inputs import COMPRESSIONS, FORMATS, extension_of
from data_prep.readers.columns import check_names, check_schema, columns_of, holds_json
from data_prep.sources import Source
from pipeline.data.shard_format import DataError
from pipeline.errors import escape_controls

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

ROWS_OR_TEXT = {".txt", ".csv", ".tsv", *FORMATS}


def check_folder(source: Source, folder: Path) -> None:
    """`datasets` reads files of one kind, and of one way of naming splits, and says nothing of the others, nor of an
    archive without a byte.

    Raises:
        DataError: a file that it would leave out, or that is empty.
    """
    from datasets import load_dataset_builder
    from datasets.data_files import FILES_TO_IGNORE

    files = load_dataset_builder(str(folder), source.dataset.name).config.data_files or {}
    taken = {str(path) for paths in files.values() for path in paths}
    for path in sorted(path for path in map(Path, taken) if path.is_file() and path.stat().st_size == 0):
        if path.suffix.lower() in (*COMPRESSIONS, ".parquet", ".arrow"):
            raise DataError(
                f"source {source.name!r}: {path} is empty (0 bytes); fetch or write it again, or move it away"
            )
    card = folder / "README.md"
    if source.dataset.name is not None or (card.is_file() and b"\nconfigs:" in card.read_bytes()):
        return  # someone chose the files
    root = folder.resolve()
    left_out = [
        name.as_posix()
        for path in sorted(root.rglob("*"))
        if path.is_file() and str(path) not in taken and extension_of(path.name) in ROWS_OR_TEXT
        for name in [path.relative_to(root)]
        if not any(part.startswith((".", "__")) for part in name.parts) and path.name not in FILES_TO_IGNORE
    ]
    if left_out:
        more = f" and {len(left_out) - 3} more" if len(left_out) > 3 else ""
        raise DataError(
            f"source {source.name!r}: `dataset` would leave out {', '.join(left_out[:3])}{more} of {folder}; "
            "`inputs` reads folders of mixed files"
        )


def check_columns(source: Source, dataset: Union["Dataset", "IterableDataset"]) -> None:
    """Refuses what is known to lack a column that the source needs, and tells of what its storage cannot tell apart.

    Raises:
        DataError: no rows, or a column that is missing, there twice or of another type.
    """
    first = next(iter(dataset), None)
    if first is None:
        raise DataError(f"source {source.name!r}: dataset {source.dataset.path} has no rows")
    where = f"source {source.name!r}: dataset {source.dataset.path}"
    names = dataset.column_names or list(first)  # a stream may not know its columns
    if dataset.info.builder_name == "csv":
        for column in columns_of(source):  # pandas calls the second of two `x` columns `x.1`
            if f"{column.name}.1" in names:
                raise DataError(f"{where} has 2 columns named {column.name!r} ({column.setting}); rename all but one")
    if dataset.features is not None:
        schema = dataset.features.arrow_schema
        check_schema(where, schema, source)
        if source.conversations is None and holds_json(schema.field(source.text_field).type):
            warning = (
                f"warning: {where}: column {source.text_field!r} mixes text with other values, so `datasets` stores it "
                "as JSON; a text that is itself JSON is read as what it spells (`inputs` reads files as they are)"
            )
            print(escape_controls(warning), file=sys.stderr)
        return
    for column in columns_of(source):
        check_names(where, names, column)
