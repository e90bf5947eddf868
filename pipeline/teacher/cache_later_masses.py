"""What later queries read of the tokens of some samples, by distance, as a file of a teacher cache: with it scorers of
retained tokens are fitted for any window without looking at that attention again. numpy only, no torch.

later_masses.safetensors holds for each of `TeacherInfo.later_mass_samples` samples, spread evenly over the data, a
tensor named by its number: float32 [L, Hkv, n, bins], of the L layers with full attention and n tokens spread evenly
over the sample the sums of pipeline/attention/later_mass.py within the token's document; of shorter documents the last
bins are zeros. later_masses.safetensors.sha256 is written after it.
"""

import hashlib
import json
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from pipeline.data.file_reading import read_file, reading
from pipeline.data.shard_format import DataError
from pipeline.data.shard_io import write_file
from pipeline.teacher.cache_format import REMEDY, TeacherInfo

LATER_MASSES_NAME = "later_masses.safetensors"
LATER_MASSES_DIGEST_NAME = f"{LATER_MASSES_NAME}.sha256"
MAX_TOKENS = 1024
"""Of one sample."""
MAX_BYTES = 1 << 36
_OWNER = "teacher_json_sha256"


def spread_samples(num_samples: int, count: int) -> list[int]:
    """Numbers of `count` of the data's samples."""
    return [number * num_samples // count for number in range(count)]


def token_step(num_tokens: int) -> int:
    """Every how many tokens of a sample one is kept."""
    return -(-num_tokens // MAX_TOKENS)


def sample_bytes(num_layers: int, num_key_value_heads: int, num_tokens: int) -> int:
    """Bytes of one sample of `num_tokens` tokens in one document: the most."""
    kept, bins = -(-num_tokens // token_step(num_tokens)), max(1, (num_tokens - 1).bit_length())
    return 4 * num_layers * num_key_value_heads * kept * bins


def are_written(folder: Path) -> bool:
    """Whether the cache has them.

    Raises:
        DataError: the folder cannot be looked into.
    """
    with reading(folder):
        return all((folder / name).is_file() for name in (LATER_MASSES_NAME, LATER_MASSES_DIGEST_NAME))


def write_later_masses(folder: Path, info: TeacherInfo, masses: dict[int, np.ndarray]) -> None:
    """Writes both files, each so that it is absent or whole at any instant.

    Raises:
        OSError: they cannot be written.
    """
    content = save({str(number): x for number, x in masses.items()}, {_OWNER: _digest(info)})
    write_file(folder / LATER_MASSES_NAME, content)
    write_file(folder / LATER_MASSES_DIGEST_NAME, _mark(content))


def read_later_masses(folder: Path, info: TeacherInfo) -> dict[int, np.ndarray]:
    """By number of the sample.

    Raises:
        DataError: they are missing, damaged or of another cache.
    """
    path = folder / LATER_MASSES_NAME
    with reading(path):
        size = path.stat().st_size
    raw = read_file(path, min(size, MAX_BYTES))
    if read_file(folder / LATER_MASSES_DIGEST_NAME, len(_mark(raw))) != _mark(raw):
        raise DataError(f"{path} does not match {LATER_MASSES_DIGEST_NAME}: one is damaged; {REMEDY}")
    try:  # it may be a stranger's, mark and all
        header = raw[8 : 8 + int.from_bytes(raw[:8], "little")]
        owner = json.loads(header).get("__metadata__", {}).get(_OWNER)
        masses = {int(name): x for name, x in load(raw).items()}
    except (SafetensorError, ValueError, AttributeError, RecursionError) as error:
        raise DataError(f"{path} does not hold what later queries read ({error}); {REMEDY}") from error
    if owner != _digest(info):
        raise DataError(f"{path} is of another cache than the teacher.json beside it; restore the files of one cache")
    if len(masses) != info.later_mass_samples:
        raise DataError(f"{path} has {len(masses)} samples, teacher.json says {info.later_mass_samples}; {REMEDY}")
    for number, x in masses.items():
        if x.dtype != np.float32 or x.ndim != 4 or not np.isfinite(x).all():
            raise DataError(f"{path}: what it has of sample {number} is no finite float32 [L, Hkv, n, bins]; {REMEDY}")
    return dict(sorted(masses.items()))


def _mark(content: bytes) -> bytes:
    """In the format that `sha256sum --check` reads."""
    return f"{hashlib.sha256(content).hexdigest()}  {LATER_MASSES_NAME}\n".encode()


def _digest(info: TeacherInfo) -> str:
    return hashlib.sha256(info.to_bytes()).hexdigest()
