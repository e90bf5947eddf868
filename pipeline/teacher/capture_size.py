"""How large a teacher cache will be, to the byte where nothing is compressed, and whether there is room. No torch."""

import itertools
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from tqdm import tqdm

from pipeline.byte_counts import format_bytes
from pipeline.data.shard_format import INDEX_DTYPE, ShardEntry
from pipeline.data.shard_io import END_OF_TAR
from pipeline.data.tar_members import BLOCK, npy_bytes
from pipeline.errors import UserError
from pipeline.model.base_config import read_base_config
from pipeline.teacher.cache_later_masses import sample_bytes
from pipeline.teacher.cache_samples import member_bytes, most_sample_bytes
from pipeline.teacher.capture_plan import CapturePlan
from pipeline.teacher.signals import SampledSpec, spec_to_json

_INDEX_HEADER_BYTES = len(npy_bytes(np.empty(0, INDEX_DTYPE)))


@dataclass(frozen=True)
class CacheSize:
    """`signal_bytes` are those of the signals' arrays, not compressed; `file_bytes` those of all tars and indexes.

    Of a sampled signal both are bounds, reached where all draws of all positions differ; of any that is compressed
    `file_bytes` is one, which noise would reach.
    """

    num_positions: int
    signal_bytes: int
    file_bytes: int


def count_cache(plan: CapturePlan, entries: Sequence[ShardEntry]) -> CacheSize:
    """What the cache's shards for these of the data's will hold. Reads every sample of them.

    Raises:
        DataError: a sample cannot be read or is damaged.
    """
    sizes_of = lru_cache(lambda count: _sample_bytes(plan, count))
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


def _sample_bytes(plan: CapturePlan, num_positions: int) -> tuple[int, int]:
    """Bytes of a sample's signal, and of all its tar members."""
    signal_bytes = sum(plan.signal.member_bytes(num_positions).values())
    return signal_bytes, most_sample_bytes(plan.signal, plan.config.compression, num_positions)


def _empty_shard_bytes(entry: ShardEntry) -> int:
    return len(END_OF_TAR) + _INDEX_HEADER_BYTES + entry.num_samples * INDEX_DTYPE.itemsize


def most_bytes(plan: CapturePlan, entries: Sequence[ShardEntry]) -> int:
    """A bound on the files' bytes from the manifest alone: a sample's last token has no next one."""
    num_positions = sum(entry.num_tokens - entry.num_samples for entry in entries)
    num_samples = sum(entry.num_samples for entry in entries)
    one_sample = _sample_bytes(plan, num_positions)[1]
    overhead = len(member_bytes(plan.signal, 0)) * (3 * BLOCK)
    return one_sample + num_samples * overhead + sum(map(_empty_shard_bytes, entries))


def later_mass_bytes(plan: CapturePlan) -> int:
    """A bound on the later masses' bytes, as if each of their samples were one document."""
    if not plan.config.later_mass_samples:
        return 0
    settings = read_base_config(plan.config.model)
    num_heads = settings.get("num_key_value_heads") or settings["num_attention_heads"]
    of_sample = sample_bytes(settings["num_hidden_layers"], num_heads, plan.dataset.manifest.seq_len)
    return plan.config.later_mass_samples * of_sample


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
    missing, masses = plan.missing, later_mass_bytes(plan)
    if most_bytes(plan, missing) + masses <= free:
        return
    needed = count_cache(plan, missing).file_bytes + masses
    if needed <= free:
        return
    message = f"--output {plan.config.output}: {format_bytes(free)} are free where {len(missing)} shards take"
    if isinstance(plan.signal, SampledSpec) or plan.config.compression != "none":  # it usually takes far less
        print(f"warning: {message} up to {format_bytes(needed)}", file=sys.stderr)
        return
    raise UserError(
        f"{message} {format_bytes(needed)}; make room, or choose another --signal, --dtype, --k or --min_budget "
        f"(--dry_run sizes it)"
    )


def describe_plan(plan: CapturePlan) -> str:
    """What --dry_run prints: positions and bytes of the whole cache, what of it is there, and the room for it."""
    shards = plan.dataset.manifest.shards
    size, free = count_cache(plan, shards), free_bytes(plan.config.output)
    most_signal = "at most " if isinstance(plan.signal, SampledSpec) else ""
    most_file = "at most " if plan.config.compression != "none" else most_signal
    spec = ", ".join(f"{name} {value}" for name, value in spec_to_json(plan.signal).items() if name != "kind")
    count, masses = plan.config.later_mass_samples, {}
    if count:
        masses = {"later masses": f"at most {format_bytes(later_mass_bytes(plan))}, of {count} samples"}
    lines = {
        "data": f"{len(shards)} shards, {len(plan.dataset)} samples, {plan.dataset.num_tokens} tokens",
        "signal": f"{plan.signal.kind}: {spec}",
        "positions": f"{size.num_positions} (policy {plan.positions}; counted over all samples)",
        "signal size": f"{most_signal}{format_bytes(size.signal_bytes)}",
        "file size": f"{most_file}{format_bytes(size.file_bytes)} in {2 * len(shards)} files",
        "compression": plan.config.compression,
        **masses,
        "there already": f"{len(shards) - len(plan.missing)} of {len(shards)} shards",
        "free": f"{format_bytes(free)} at {plan.config.output}",
    }
    return "\n".join(f"{name:14}{value}" for name, value in lines.items())
