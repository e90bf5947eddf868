"""A JSON file that carries its own digest, so that a changed byte in it is seen without another file. No numpy."""

import hashlib
import json
from pathlib import Path

from pipeline.data.file_reading import read_file, reading
from pipeline.data.shard_format import DataError

DIGEST_FIELD = "sha256"
MAX_SEALED_BYTES = 1 << 26


def seal(facts: dict) -> bytes:
    """The file's bytes, the same for equal `facts` (JSON types, no field "sha256")."""
    assert DIGEST_FIELD not in facts, "the field is the digest's"
    return _render(json.loads(json.dumps(facts)))


def load_sealed(path: Path, most_bytes: int = MAX_SEALED_BYTES) -> dict:
    """The facts of the file, without the digest.

    Raises:
        DataError: the file is missing, cannot be read, has more than `most_bytes` bytes, or any byte of it differs from
            what was written.
    """
    with reading(path):
        if not path.is_file():
            raise DataError(f"{path} is missing")
    raw = read_file(path, most_bytes)
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
