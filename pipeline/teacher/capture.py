"""The offline teacher job: runs the full-attention teacher over packed data, each shard once, into a teacher cache.

The forward is that of the on-the-fly teacher (pipeline/teacher/online.py) with one sample as the row: where shapes,
threads and machine are the same, so is every bit.
"""

import contextlib
import errno
import hashlib
import json
import os
import platform
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import transformers
from torch import Tensor
from tqdm import tqdm

from pipeline.attention.window import Document
from pipeline.config import MemoryConfig, TeacherCacheConfig
from pipeline.config.teacher import DEFAULT_CHUNK_SIZE
from pipeline.data.shard_format import DataError, PackedSample, ShardEntry
from pipeline.errors import UserError
from pipeline.model.adapter import base_fingerprint
from pipeline.model.loading import load_base
from pipeline.teacher.cache_claims import claim, claimed_shards
from pipeline.teacher.cache_listing import LISTING_DIGEST_NAME, LISTING_NAME
from pipeline.teacher.cache_writer import CacheShardWriter, begin_cache, complete_cache
from pipeline.teacher.capture_plan import CapturePlan, read_model_config
from pipeline.teacher.extract import extract_signal

# Of config.json: what does not change the forward, or is set by our own flags.
_BOOKKEEPING = ("_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version", "use_cache")
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass
class Outcome:
    """What this process did. `num_left`: shards that other processes have not finished; 0: the cache is complete."""

    num_shards: int = 0
    num_positions: int = 0
    num_bytes: int = 0
    num_left: int = 0


def teacher_fingerprint(model: str) -> str:
    """Names a teacher: sha256 (hex) over its weights (`base_fingerprint`) and its config.json.

    The config counts because the same weights with other RoPE settings are another teacher.

    Raises:
        UserError: there is no such model, or not a base.
    """
    config = {name: value for name, value in read_model_config(model).items() if name not in _BOOKKEEPING}
    parts = {"weights": base_fingerprint(model), "config": config}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


class Teacher:
    """The frozen base that training would load, with full attention and without its memory.

    Raises:
        UserError: the model cannot be loaded, or is of an unsupported kind.
    """

    def __init__(self, config: TeacherCacheConfig, device: torch.device) -> None:
        dtype = getattr(torch, config.base_dtype)
        model = load_base(config.model, memory=MemoryConfig(), window=None, dtype=dtype).eval().to(device)
        self.head = model.get_output_embeddings().weight
        self._decoder = model.get_decoder()

    @torch.no_grad()
    def compute_hidden(self, sample: PackedSample, positions: np.ndarray) -> Tensor:
        """Final normed hidden states [M, D] at `positions` (int [M], counted within the sample), in the base's dtype.

        A sample without positions costs no forward.
        """
        if len(positions) == 0:
            return self.head.new_empty(0, self.head.shape[1])
        device = self.head.device
        output = self._decoder(
            input_ids=torch.from_numpy(sample.input_ids.astype(np.int64))[None].to(device),
            use_cache=False,
            documents=[Document(0, start, end, None) for start, end in pairwise(sample.cu_seqlens.tolist())],
            use_memory=False,
        )
        return output.last_hidden_state[0, torch.from_numpy(positions.astype(np.int64)).to(device)]


def choose_device(local_rank: int) -> torch.device:
    """The process's own GPU, or the CPU. A launcher may let each process see all GPUs of the node, or only its own."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", local_rank % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return device


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
    output, manifest = plan.config.output, plan.dataset.manifest
    info = plan.describe_cache(teacher_fingerprint(plan.config.model))
    started, outcome, device, teacher = time.perf_counter(), Outcome(), choose_device(local_rank), None
    with _writing(output):
        begin_cache(output, info)
        _reopen_cache(plan)
    total = _num_tokens(plan.missing)
    show = rank == 0 and total > 0
    with _writing(output), tqdm(total=total, unit="tok", unit_scale=True, mininterval=1, disable=not show) as bar:
        num_before = -1
        while num_before < outcome.num_shards:  # again, for what a process that died meanwhile has left
            num_before = outcome.num_shards
            for entry in claimed_shards(output, manifest, rank, num_ranks):
                if teacher is None:
                    teacher = Teacher(plan.config, device)
                    bar.reset(total)  # loading is no part of the rate
                capture_shard(plan, teacher, entry, outcome, bar)
                if not bar.disable:  # what others finished counts too
                    bar.update(max(0, total - _num_tokens(plan.missing) - bar.n))
    facts = _run_facts(plan, num_ranks, device, time.perf_counter() - started)
    with _writing(output):
        is_complete = complete_cache(output, manifest, facts)
    outcome.num_left = 0 if is_complete else len(plan.missing)
    return outcome


@contextlib.contextmanager
def _writing(output: Path) -> Iterator[None]:
    """A full disk, and files in --output that may not be written, are the user's to mend; other errors are not."""
    try:
        yield
    except OSError as error:
        if error.errno not in _NO_ROOM and not str(error.filename).startswith(str(output)):
            raise
        raise UserError(
            f"--output {output} cannot be written: {error.strerror}; mend that and run the same command again, which "
            f"does what is missing"
        ) from error


def capture_shard(plan: CapturePlan, teacher: Teacher, entry: ShardEntry, outcome: Outcome, bar: tqdm) -> None:
    """Writes the cache's shard for the data's shard `entry`, and adds to `outcome` and `bar`.

    Raises:
        DataError: a sample is damaged, or the teacher's signal of it is not finite.
    """
    chunk_size = plan.config.chunk_size or DEFAULT_CHUNK_SIZE
    with CacheShardWriter(plan.config.output, entry) as writer:
        for sample in plan.samples_of(entry):
            positions = plan.positions.select(sample)
            hidden = teacher.compute_hidden(sample, positions)
            try:
                signal = extract_signal(plan.signal, hidden, teacher.head, sample.key, positions, chunk_size)
            except ValueError as error:
                raise DataError(
                    f"--model {plan.config.model} at sample {sample.key} of {entry.name}: {error}; try another "
                    f"--base_dtype or --dtype"
                ) from error
            writer.write(sample.key, positions, signal)
            outcome.num_positions += len(positions)
            bar.update(len(sample.input_ids))
    outcome.num_shards += 1
    outcome.num_bytes += (plan.config.output / entry.tar_name).stat().st_size
    bar.set_postfix_str(f"{tqdm.format_sizeof(outcome.num_bytes, 'B')} in {outcome.num_shards} shards", refresh=False)


def _reopen_cache(plan: CapturePlan) -> None:
    """Takes the completion mark from a cache of which shards were deleted since: damaged ones, to have them again."""
    mark = plan.config.output / LISTING_DIGEST_NAME
    if mark.is_file() and plan.missing:
        with claim(plan.config.output, LISTING_NAME, wait=True):
            if plan.missing:  # nobody can have completed it in between
                mark.unlink(missing_ok=True)


def _num_tokens(entries: list[ShardEntry]) -> int:
    return sum(entry.num_tokens for entry in entries)


def _run_facts(plan: CapturePlan, num_ranks: int, device: torch.device, seconds: float) -> dict:
    """For run.json: of the process that completed the cache."""
    return {
        "model": plan.config.model,
        "base_dtype": plan.config.base_dtype,
        "chunk_size": plan.config.chunk_size or DEFAULT_CHUNK_SIZE,
        "num_ranks": num_ranks,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {os.cpu_count()} cores",
        "num_threads": torch.get_num_threads(),
        "host": platform.node(),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "seconds": round(seconds, 3),
        "finished_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
