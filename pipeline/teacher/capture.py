"""The offline teacher job: runs the full-attention teacher over packed data, each shard once, into a teacher cache."""

import contextlib
import errno
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import torch

from pipeline.data.shard_format import DataError, PackedSample, ShardEntry
from pipeline.distributed.device import choose_device
from pipeline.errors import UserError
from pipeline.provenance import describe_start
from pipeline.teacher.cache_claims import claimed_shards
from pipeline.teacher.cache_writer import CacheShardWriter, begin_cache, complete_cache, reopen_cache
from pipeline.teacher.capture_plan import CapturePlan
from pipeline.teacher.extract import extract_signal
from pipeline.teacher.later_mass_capture import capture_later_masses
from pipeline.teacher.progress import CaptureProgress
from pipeline.teacher.teacher_model import Teacher, check_teacher

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass
class Outcome:
    """What this process did. `num_left`: shards that other processes have not finished; 0: the cache is complete."""

    num_shards: int = 0
    num_positions: int = 0
    num_bytes: int = 0
    num_left: int = 0
    started_at: float = field(default_factory=time.perf_counter)


def run_capture(plan: CapturePlan, rank: int, num_ranks: int, local_rank: int) -> Outcome:
    """Works on missing shards until there are none that nobody else works on; then completes the cache if it can.

    Needs no contact with the other processes. The model is loaded only if there is a shard to do.

    Args:
        plan: what to do.
        rank: of this process; only where it begins, unless the file system has no locks.
        num_ranks: processes that `rank` counts.
        local_rank: which of the machine's GPUs it takes.

    Raises:
        UserError: --output holds something else or cannot be written, the model cannot be loaded, its outputs are not
            finite, or a sample is damaged.
    """
    outcome, device = Outcome(), choose_device(local_rank)
    teacher = Teacher(plan.config, device)
    begin_capture(plan)
    capture_shards(plan, rank, num_ranks, teacher, outcome)
    with _writing(plan.config.output):
        capture_later_masses(plan, teacher)
    finish_capture(plan, num_ranks, device, outcome)
    return outcome


def begin_capture(plan: CapturePlan) -> None:
    """Makes --output ready for shards.

    Raises:
        UserError: it holds something else or cannot be written, or the model is of an unsupported kind.
    """
    check_teacher(plan.config.model, plan.config.check_base)
    output, info = plan.config.output, plan.describe_cache(plan.teacher_sha256)
    with _writing(output):
        begin_cache(output, info)
        reopen_cache(output, plan.dataset.manifest)


def capture_shards(plan: CapturePlan, rank: int, num_ranks: int, teacher: Teacher, outcome: Outcome) -> None:
    """Writes missing shards until there are none that nobody else works on, and adds to `outcome`.

    Args:
        plan: what to do; begun.
        rank: of this process; rank 0 shows the progress of all.
        num_ranks: processes that `rank` counts.
        teacher: is loaded if there is a shard to do and it is not loaded yet.
        outcome: of this process.

    Raises:
        UserError: as `run_capture`.
    """
    output, num_before = plan.config.output, -1
    with _writing(output), CaptureProgress(output, plan.missing, rank == 0) as progress:
        while num_before < outcome.num_shards:  # again, for what a process that died meanwhile has left
            num_before = outcome.num_shards
            for entry in claimed_shards(output, plan.dataset.manifest, rank, num_ranks):
                if not teacher.is_loaded:
                    teacher.load()
                    progress.restart()
                capture_shard(plan, teacher, entry, outcome, progress)
        teacher.finish(progress.count_others)
        progress.count_others()


def finish_capture(plan: CapturePlan, num_ranks: int, device: torch.device, outcome: Outcome) -> None:
    """Completes the cache if no shard is missing, and notes in `outcome` how many are.

    Raises:
        UserError: --output cannot be written, or a shard in it does not fit its index.
    """
    with _writing(plan.config.output):
        facts = _run_facts(plan, num_ranks, device, outcome)
        is_complete = complete_cache(plan.config.output, plan.dataset, facts)
    outcome.num_left = 0 if is_complete else len(plan.missing)


@contextlib.contextmanager
def _writing(output: Path) -> Iterator[None]:
    """A full disk, and files in --output that may not be written, are the user's to mend; other errors are not."""
    try:
        yield
    except OSError as error:
        is_ours = isinstance(error.filename, str) and Path(error.filename).absolute().is_relative_to(output.absolute())
        if error.errno not in _NO_ROOM and not is_ours:
            raise
        raise UserError(
            f"--output {output} cannot be written: {error.strerror}; mend that and run the same command again, which "
            f"does what is missing"
        ) from error


def error_of(act: Callable[[], None]) -> UserError | None:
    """What `act` raises for the user, to be raised on all ranks together."""
    try:
        act()
    except UserError as error:
        return error
    return None


def capture_shard(
    plan: CapturePlan, teacher: Teacher, entry: ShardEntry, outcome: Outcome, progress: CaptureProgress
) -> None:
    """Writes the cache's shard for the data's shard `entry`, and adds to `outcome` and `progress`.

    Raises:
        DataError: a sample is damaged, or the teacher's signal of it is not finite.
    """
    with CacheShardWriter(plan.config.output, entry) as writer:
        for sample in read_ahead(plan.samples_of(entry)):
            positions = plan.positions.select(sample)
            hidden = teacher.compute_hidden(sample, positions)
            try:
                signal = extract_signal(plan.signal, hidden, teacher.head, sample.key, positions, plan.chunk_size)
            except ValueError as error:
                raise DataError(
                    f"--model {plan.config.model} at sample {sample.key} of {entry.name}: {error}; try another "
                    f"--base_dtype or --dtype"
                ) from error
            writer.write(sample.key, positions, signal)
            outcome.num_positions += len(positions)
            progress.add_sample(len(sample.input_ids))
    outcome.num_shards += 1
    outcome.num_bytes += (plan.config.output / entry.tar_name).stat().st_size
    progress.add_shard(outcome.num_shards, outcome.num_bytes)


def read_ahead(samples: Iterator[PackedSample]) -> Iterator[PackedSample]:
    """`samples`, of which a thread reads the next one meanwhile; an error comes in its sample's place."""
    with ThreadPoolExecutor(1, thread_name_prefix="read-ahead") as reader:
        coming = reader.submit(next, samples, None)
        while (sample := coming.result()) is not None:
            coming = reader.submit(next, samples, None)
            yield sample


def _run_facts(plan: CapturePlan, num_ranks: int, device: torch.device, outcome: Outcome) -> dict:
    """For run.json: of the process that completed the cache."""
    return {
        "model": plan.config.model,
        "base_dtype": plan.config.base_dtype,
        "chunk_size": plan.chunk_size,
        "forward_chunk": plan.config.forward_chunk,
        "is_partitioned": plan.config.ds_config is not None,
        "sequence_parallel_size": plan.config.sequence_parallel_size,
        "num_ranks": num_ranks,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {os.cpu_count()} cores",
        "num_threads": torch.get_num_threads(),
        **describe_start(),
        "seconds": round(time.perf_counter() - outcome.started_at, 3),
        "finished_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
