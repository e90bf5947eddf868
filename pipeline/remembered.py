"""What was computed once and need not be again: small JSON records, named by a digest of all that they depend on.

They lie in the folder that AHN_CACHE_DIR names, by default in ahn-pipeline of the user's cache folder. Where that
cannot be written, things are computed again. Standard library only.
"""

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def digest_of(parts: Iterable[str | bytes | Path]) -> str:
    """sha256 (hex) of texts, bytes and files, each with its length, so that no two lists have the same."""
    digest = hashlib.sha256()
    for part in parts:
        content = part.read_bytes() if isinstance(part, Path) else part.encode() if isinstance(part, str) else part
        digest.update(len(content).to_bytes(8, "little") + content)
    return digest.hexdigest()


def recall(kind: str, digest: str) -> Any:
    """The record; None where there is none, or a damaged one."""
    try:
        return json.loads(_path(kind, digest).read_bytes())
    except (OSError, ValueError, RuntimeError):  # RuntimeError: a user without a home folder
        return None


def remember(kind: str, digest: str, record: Any) -> None:
    """Keeps a record for `recall`, in this process and others."""
    try:
        path = _path(kind, digest)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(f".tmp-{os.getpid()}")
        temporary.write_text(json.dumps(record, indent=1) + "\n")
        os.replace(temporary, path)
    except (OSError, RuntimeError):
        return


def _path(kind: str, digest: str) -> Path:
    folder = os.environ.get("AHN_CACHE_DIR")
    if not folder:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ahn-pipeline"
    return Path(folder) / kind / f"{digest[:32]}.json"
