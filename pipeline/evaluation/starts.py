"""Which starts an output folder has seen: command, commit and versions of each, in its run.json."""

import json
from pathlib import Path

from pipeline.errors import UserError
from pipeline.evaluation.writing import write_atomically, writes_to
from pipeline.provenance import list_starts


def note_start(output: Path) -> None:
    """Adds this process to the folder's run.json.

    Raises:
        UserError: it tells of something else, a training or prepared data, is damaged, or cannot be written.
    """
    path = output / "run.json"
    if path.is_file():
        try:
            is_ours = json.loads(path.read_bytes()).keys() == {"starts"}
        except (ValueError, AttributeError):
            is_ours = False
        if not is_ours:
            raise UserError(f"--output {output} holds something else, as its run.json says; name another folder")
    with writes_to(output):
        write_atomically(path, json.dumps({"starts": list_starts(path)}, indent=1) + "\n")
