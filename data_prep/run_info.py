"""run.json: what may differ between two equal runs (time, host, worker count), sealed with its own digest.

The manifest cannot list run.json, because equal runs must make equal manifests.
"""

from pathlib import Path

from pipeline.data.sealed_json import load_sealed, seal
from pipeline.data.shard_format import RUN_INFO_NAME
from pipeline.data.shard_io import write_file


def write_run_info(folder: Path, facts: dict) -> None:
    """Writes run.json atomically; `facts` (JSON types, no field "sha256") is what it says besides its digest."""
    write_file(folder / RUN_INFO_NAME, seal(facts))


def check_run_info(folder: Path) -> dict:
    """The facts of the folder's run.json.

    Raises:
        DataError: the file is missing, or any byte of it differs from what was written.
    """
    return load_sealed(folder / RUN_INFO_NAME)
