"""How large a teacher cache will be, to the byte, and whether there is room for it. No torch."""

import itertools
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from tqdm import tqdm

from pipeline.data.shard_format import INDEX_DTYPE, ShardEntry
from pipeline.data.shard_io import END_OF_TAR
from pipeline.data.tar_members import BLOCK, npy_bytes
from pipeline.errors import UserError
from pipeline.teacher.bit_packing import packed_size
from pipeline.teacher.capture_plan import CapturePlan
from pipeline.teacher.signals import STORED_DTYPES, HiddenSpec, SampledSpec, SignalSpec, TopKSpec, spec_to_json

_NPY_HEADER_BYTES = len(npy_bytes(np.empty(0, np.uint8)))  # of every array of a cache: numpy pads it
_INDEX_HEADER_BYTES = len(npy_bytes(np.empty(0, INDEX_DTYPE)))


@dataclass(frozen=True)
class CacheSize:
    """`signal_bytes` are those of the signals' arrays; `file_bytes` those of all tars and indexes.

    Of a sampled signal both are bounds, reached where all draws of all positions differ.
    """

    num_positions: int
    signal_bytes: int
    file_bytes: int


def count_cache(plan: CapturePlan, entries: Sequence[ShardEntry]) -> CacheSize:
    """What the cache's shards for these of the data's will hold. Reads every sample of them.

    Raises:
        DataError: a sample cannot be read or is damaged.
    """
    sizes_of = lru_cache(lambda count: _sample_bytes(plan.signal, count))
    num_positions = signal_bytes = 0
    file_bytes = sum(_empty_shard_bytes(entry) for entry in entries)
    total = sum(entry.num_tokens for entry in entries)
    with tqdm(total=total, desc="counting positions", unit="tok", unit_scale=True, disable=None, delay=1) as bar:
        for sample in itertools.chain.from_iterable(map(plan.samples_of, entries)):
            count = len(plan.positions.select(sample))
            arrays, members = sizes_of(count)
            num_positions, signal_bytes, file_bytes = num_positions + count, signal_bytes + arrays, file_bytes + members
            bar.update(len(sample.input_ids))
    return CacheSize(num_positions, signal_bytes, file_bytes)


def _sample_bytes(spec: SignalSpec, num_positions: int) -> tuple[int, int]:
    """Bytes of a sample's signal, and of all its tar members."""
    arrays = _array_bytes(spec, num_positions)
    contents = [_NPY_HEADER_BYTES + size for size in (4 * num_positions, *arrays)]
    return sum(arrays), sum(BLOCK + size + -size % BLOCK for size in contents)


def _array_bytes(spec: SignalSpec, num: int) -> tuple[int, ...]:
    """Bytes of the arrays of `num` positions, in the order of `spec.member_names`."""
    if isinstance(spec, HiddenSpec):
        values = num * spec.hidden_size * np.dtype(STORED_DTYPES[spec.dtype]).itemsize
        return (values, 4 * num) if spec.dtype == "int8" else (values,)
    if isinstance(spec, TopKSpec):
        return num * packed_size(spec.k, spec.vocab_size), 2 * num * spec.k, 4 * num
    most = num * min(spec.num_draws, spec.vocab_size)
    return 2 * num, packed_size(most, spec.vocab_size), most * spec.count_dtype.itemsize


def _empty_shard_bytes(entry: ShardEntry) -> int:
    return len(END_OF_TAR) + _INDEX_HEADER_BYTES + entry.num_samples * INDEX_DTYPE.itemsize


def most_bytes(plan: CapturePlan, entries: Sequence[ShardEntry]) -> int:
    """A bound on the files' bytes from the manifest alone: a sample's last token has no next one."""
    num_positions = sum(entry.num_tokens - entry.num_samples for entry in entries)
    num_samples = sum(entry.num_samples for entry in entries)
    one_sample = _sample_bytes(plan.signal, num_positions)[1]
    overhead = (len(plan.signal.member_names) + 1) * (3 * BLOCK)
    return one_sample + num_samples * overhead + sum(map(_empty_shard_bytes, entries))


def free_bytes(folder: Path) -> int:
    """Bytes that may be written where `folder` is or will be."""
    return shutil.disk_usage(next(path for path in (folder, *folder.absolute().parents) if path.is_dir())).free


def check_space(plan: CapturePlan, free: int) -> None:
    """Refuses a cache that does not fit; warns where only a bound on it does not. Reads the data if it is close.

    Args:
        plan: what is going to be written, less what is there.
        free: bytes that may be written.

    Raises:
        UserError: names --output, the bytes that are needed and those that are free.
    """
    missing = plan.missing
    if most_bytes(plan, missing) <= free:
        return
    needed = count_cache(plan, missing).file_bytes
    if needed <= free:
        return
    message = f"--output {plan.config.output}: {free} bytes are free where {len(missing)} shards take"
    if isinstance(plan.signal, SampledSpec):  # what it takes depends on what is drawn, and usually is far less
        print(f"warning: {message} up to {needed}", file=sys.stderr)
        return
    raise UserError(
        f"{message} {needed}; make room, or choose another --signal, --dtype, --k or --min_budget (--dry_run sizes it)"
    )


def describe_plan(plan: CapturePlan) -> str:
    """What --dry_run prints: positions and bytes of the whole cache, what of it is there, and the room for it."""
    shards = plan.dataset.manifest.shards
    size, free = count_cache(plan, shards), free_bytes(plan.config.output)
    most = "at most " if isinstance(plan.signal, SampledSpec) else ""
    spec = ", ".join(f"{name} {value}" for name, value in spec_to_json(plan.signal).items() if name != "kind")
    lines = {
        "data": f"{len(shards)} shards, {len(plan.dataset)} samples, {plan.dataset.num_tokens} tokens",
        "signal": f"{plan.signal.kind}: {spec}",
        "positions": f"{size.num_positions} (policy {plan.positions}; counted over all samples)",
        "signal bytes": f"{most}{size.signal_bytes}",
        "file bytes": f"{most}{size.file_bytes} in {2 * len(shards)} files",
        "there already": f"{len(shards) - len(plan.missing)} of {len(shards)} shards",
        "free bytes": f"{free} at {plan.config.output}",
    }
    return "\n".join(f"{name:14}{value}" for name, value in lines.items())
