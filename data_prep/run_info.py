"""run.json: what may differ between two equal runs (time, host, worker count), sealed with its own digest.

The manifest cannot list run.json, because equal runs must make equal manifests. Its "sha256" field makes a
changed byte in it visible all the same.
"""

import hashlib
import json
from pathlib import Path

from data_prep.shard_writer import write_file
from pipeline.data.shard_format import RUN_INFO_NAME, DataError

DIGEST_FIELD = "sha256"


def write_run_info(folder: Path, facts: dict) -> None:
    """Writes run.json atomically; `facts` (JSON types, no field "sha256") is what it says besides its digest."""
    assert DIGEST_FIELD not in facts, "the field is the digest's"
    write_file(folder / RUN_INFO_NAME, _render(json.loads(json.dumps(facts))))


def check_run_info(folder: Path) -> dict:
    """The facts of the folder's run.json.

    Raises:
        DataError: the file is missing, or any byte of it differs from what was written.
    """
    path = folder / RUN_INFO_NAME
    if not path.is_file():
        raise DataError(f"{path} is missing")
    raw = path.read_bytes()
    try:
        facts = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is damaged: not JSON ({error})") from error
    if not isinstance(facts, dict) or DIGEST_FIELD not in facts:
        raise DataError(f'{path} is damaged: it has no field "{DIGEST_FIELD}"')
    del facts[DIGEST_FIELD]
    if _render(facts) != raw:
        raise DataError(f'{path} does not match the "{DIGEST_FIELD}" in it: it was altered after it was written')
    return facts


def _render(facts: dict) -> bytes:
    canonical = json.dumps(facts, sort_keys=True, separators=(",", ":"))
    sealed = {**facts, DIGEST_FIELD: hashlib.sha256(canonical.encode()).hexdigest()}
    return (json.dumps(sealed, indent=1, sort_keys=True) + "\n").encode()
