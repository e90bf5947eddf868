"""What was measured on one piece of text, and the folder that keeps it.

An evaluation folder holds
    settings.json           what determines the numbers: weights, data, window, dtype
    records/{key}.json      one finished piece each, written under another name and renamed
    documents.jsonl         all of them in order, written at the end, with report.json and report.html

So an evaluation that was stopped goes on with what is missing, with any number of processes, and processes
need no other way to hand results to each other.
"""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from pipeline.errors import UserError


@dataclass(frozen=True)
class PieceRecord:
    """Measurements at the scored positions of one piece; KL and NLL in nats.

    Lists run parallel to `positions`, 0-based in the piece; the value at t is about predicting token t + 1.
    """

    key: str
    document: str
    length: int
    positions: list[int]
    kl_window: list[float]
    kl_ahn: list[float]
    nll_full: list[float]
    nll_window: list[float]
    nll_ahn: list[float]
    seconds: float
    num_ranks: int
    peak_rss_gib: float


def write_atomically(path: Path, text: str) -> None:
    """Writes `text` so that `path` is absent or whole at every instant, and on disk on return."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    with scratch.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    scratch.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    os.fsync(folder)
    os.close(folder)


class EvaluationFolder:
    """`--output` of an evaluation; see the module's docstring.

    Raises:
        UserError: the folder holds the records of an evaluation with other settings.
    """

    def __init__(self, path: Path, settings: dict) -> None:
        self.path = path
        (path / "records").mkdir(parents=True, exist_ok=True)
        known = path / "settings.json"
        if known.is_file():
            found = json.loads(known.read_text())
            for name in settings:
                if found.get(name) != settings[name]:
                    raise UserError(
                        f"--output {path} holds an evaluation with {name} {found.get(name)}, this one has "
                        f"{settings[name]}; choose another folder"
                    )
        else:
            write_atomically(known, json.dumps(settings, indent=1) + "\n")

    def record_path(self, key: str) -> Path:
        return self.path / "records" / f"{key}.json"

    def has(self, key: str) -> bool:
        return self.record_path(key).is_file()

    def write(self, record: PieceRecord) -> None:
        write_atomically(self.record_path(record.key), json.dumps(asdict(record)) + "\n")

    def read(self, key: str) -> PieceRecord:
        return PieceRecord(**json.loads(self.record_path(key).read_text()))
