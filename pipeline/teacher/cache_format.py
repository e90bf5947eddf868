"""The teacher cache's contract: what its files are called and hold. numpy only, no torch.

A cache folder belongs to one data folder and mirrors its shards. It holds
    teacher.json        the teacher, the data, the signal and which positions have one (TeacherInfo); written first
    {shard}.tar         of every sample of the data's shard, in its order, under its key: {key}.positions.npy int32
                        [M], rising, then the signal's members (pipeline/teacher/signals.py); M may be 0. With
                        compression each is one zstd frame, {name}.npy.zst (pipeline/teacher/cache_members.py)
    {shard}.idx.npy     INDEX_DTYPE [num_samples]; `tokens` counts positions, `digest` is keyed with the sha256 of
                        teacher.json: a shard of another cache fits nothing here. The shard is complete iff this is
                        there
    shards.json         size and sha256 of every file; written when all shards are complete
    shards.json.sha256  written last: the cache is finished iff it is there and matches
    run.json            what may differ between equal runs (time, host, ranks)
    later_masses.*      where they were asked for (pipeline/teacher/cache_later_masses.py)

The signal at position p, counted from 0 in the sample, is the teacher's prediction of token p + 1, which is of the same
document. All files but run.json are determined by the data, the teacher and the settings; with compression by the
version of zstandard too, between which the frames may differ and their content does not. A cache that is not finished
may be read shard by shard; `.work/` is what its writers need.
"""

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from pipeline.data.file_reading import reading
from pipeline.data.sealed_json import load_sealed, seal
from pipeline.data.shard_format import DataError, PackedSample
from pipeline.data.shard_io import write_file
from pipeline.errors import UserError
from pipeline.losses.positions import supervised_positions
from pipeline.teacher.cache_members import Compression
from pipeline.teacher.signals import SignalSpec, spec_from_json, spec_to_json

CACHE_FORMAT_VERSION = 3
TEACHER_NAME = "teacher.json"
WORK_FOLDER = ".work"
MAX_TEACHER_BYTES = 1 << 20  # of teacher.json
MAX_BUDGET = (1 << 31) - 1  # positions are int32
REMEDY = "restore the file, or delete the shard's two files and run launchers/cache_teacher.py again"

Policy = Literal["all", "past_budget"]
BaseDtype = Literal["float32", "bfloat16"]
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class PositionPolicy:
    """Which positions have a signal: those that are supervised with a lossless budget of `min_budget`.

    Raises:
        UserError: at construction: `all` with a budget, another policy, a negative budget.
    """

    policy: Policy
    min_budget: int = 0

    def __post_init__(self) -> None:
        if self.policy not in get_args(Policy):
            raise UserError(f"positions policy {self.policy!r}: there are {', '.join(get_args(Policy))}")
        if type(self.min_budget) is not int or not 0 <= self.min_budget <= MAX_BUDGET:
            raise UserError(f"positions min_budget {self.min_budget!r}: an integer from 0 to {MAX_BUDGET} is needed")
        if self.policy == "all" and self.min_budget != 0:
            raise UserError(f"positions min_budget {self.min_budget}: policy all has 0; past_budget takes a budget")

    def select(self, sample: PackedSample) -> np.ndarray:
        """The sample's positions that have a signal, int32 [M], rising."""
        return supervised_positions(sample.cu_seqlens, self.min_budget, sample.loss_mask).astype(np.int32)

    def covers(self, budget: int) -> bool:
        """Whether all that is supervised with a lossless budget of `budget` has a signal."""
        return budget >= self.min_budget

    def __str__(self) -> str:
        return "all" if self.policy == "all" else f"{self.policy} with min_budget {self.min_budget}"


@dataclass(frozen=True)
class TeacherInfo:
    """teacher.json. Equal for equal settings.

    `teacher_sha256` names the teacher's weights and config, `tokenizer_sha256` the data's tokenizer, `data_sha256` the
    data (PackedDataset.fingerprint), all hex; `base_dtype` is what the teacher computed in, `forward_chunk` how many
    tokens at a time (None: whole samples), `chunk_size` of how many positions logits were computed at a time (None: of
    none), `sequence_parallel_size` how many ranks computed a sample together: all may change last digits.
    `later_mass_samples`: of how many samples there are later masses; not said where there are none, so that caches from
    before there were any have the same digests. `teacher_name` is for people.
    """

    teacher_name: str
    base_dtype: BaseDtype
    teacher_sha256: str
    tokenizer_sha256: str
    data_sha256: str
    signal: SignalSpec
    positions: PositionPolicy
    compression: Compression
    forward_chunk: int | None
    chunk_size: int | None
    sequence_parallel_size: int = 1
    later_mass_samples: int = 0
    format_version: int = CACHE_FORMAT_VERSION

    def to_json(self) -> dict:
        """The fields as JSON types."""
        positions = {"policy": self.positions.policy, "min_budget": self.positions.min_budget}
        fields = {**vars(self), "signal": spec_to_json(self.signal), "positions": positions}
        return {name: value for name, value in fields.items() if name != "later_mass_samples" or value}

    def to_bytes(self) -> bytes:
        """The content of teacher.json."""
        return seal(self.to_json())

    @property
    def digest_key(self) -> bytes:
        """Key of the samples' digests, [32]."""
        return hashlib.sha256(self.to_bytes()).digest()

    def save(self, folder: Path) -> None:
        """Writes teacher.json atomically."""
        write_file(folder / TEACHER_NAME, self.to_bytes())

    @classmethod
    def load(cls, folder: Path) -> "TeacherInfo":
        """Reads and checks teacher.json.

        Raises:
            DataError: it is missing, altered, of another format version, cannot be read, or says what no cache can.
        """
        path = folder / TEACHER_NAME
        with reading(path):
            if not path.is_file():
                raise DataError(f"{folder} is no teacher cache: it has no {TEACHER_NAME}; make one with "
                                f"launchers/cache_teacher.py")  # fmt: skip
        fields = load_sealed(path, MAX_TEACHER_BYTES)
        if fields.get("format_version") != CACHE_FORMAT_VERSION:
            raise DataError(
                f"{path} has format version {fields.get('format_version')!r}, this code reads {CACHE_FORMAT_VERSION}"
            )
        try:
            fields["signal"] = spec_from_json(fields["signal"])
            fields["positions"] = PositionPolicy(**fields["positions"])
            info = cls(**fields)
        except (TypeError, KeyError, UserError) as error:
            raise DataError(f"{path} does not describe a teacher cache ({error})") from error
        hashes = (info.teacher_sha256, info.tokenizer_sha256, info.data_sha256)
        if not all(isinstance(value, str) and _SHA256.fullmatch(value) for value in hashes):
            raise DataError(f"{path} does not describe a teacher cache: a fingerprint is not 64 hex digits")
        choices = {"base_dtype": get_args(BaseDtype), "compression": get_args(Compression)}
        for name, legal in choices.items():
            if getattr(info, name) not in legal:
                raise DataError(f"{path} has {name} {getattr(info, name)!r}, this code reads {' and '.join(legal)}")
        if not isinstance(info.teacher_name, str):
            raise DataError(f"{path} does not describe a teacher cache: teacher_name is no text")
        for name in ("forward_chunk", "chunk_size"):
            value = getattr(info, name)
            if value is not None and not (type(value) is int and value >= 1):
                raise DataError(f"{path} has {name} {value!r}, this code reads null and numbers from 1")
        size = info.sequence_parallel_size
        if not (type(size) is int and size >= 1):
            raise DataError(f"{path} has sequence_parallel_size {size!r}, this code reads numbers from 1")
        count = info.later_mass_samples
        if not (type(count) is int and count >= 0):
            raise DataError(f"{path} has later_mass_samples {count!r}, this code reads numbers from 0")
        return info


FINGERPRINTS = ("teacher_sha256", "tokenizer_sha256", "data_sha256")


def check_same(found: TeacherInfo, asked: TeacherInfo, where: str) -> None:
    """Refuses to take a cache for another one; the fingerprints are named first.

    Args:
        found: what the cache says.
        asked: what it should be.
        where: names the cache in the error.

    Raises:
        DataError: names every field that differs with both values.
    """
    old, new = dict(_flat(found.to_json())), dict(_flat(asked.to_json()))
    names = [*FINGERPRINTS, *sorted((old.keys() | new.keys()) - set(FINGERPRINTS))]
    pairs = {name: (old.get(name), new.get(name)) for name in names}
    differing = [f"{n} is {a}, not {b}" for n, (a, b) in pairs.items() if a != b]
    if differing:
        raise DataError(f"{where} is another cache: {'; '.join(differing)}; name another folder or the same settings")


def _flat(fields: dict, prefix: str = "") -> Iterator[tuple[str, object]]:
    for name, value in fields.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value
