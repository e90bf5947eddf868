"""Runs as one rank: loads a base partitioned (or whole) and says what it holds, for test_partitioned_loading.py.

RANK=.. WORLD_SIZE=.. MASTER_ADDR=.. MASTER_PORT=.. python loading_cases.py MODEL OUTPUT partitioned|whole DTYPE
"""

import contextlib
import ctypes
import hashlib
import json
import sys
from pathlib import Path

import deepspeed
import torch

from pipeline.config import MemoryConfig
from pipeline.distributed.groups import init_distributed, leave_distributed
from pipeline.model.loading import load_base
from pipeline.model.partitioning import partition_frozen

SETTINGS = {
    "train_micro_batch_size_per_gpu": 1,
    "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0},
}
# glibc's mallopt: blocks from this size on go back to the system when they are freed, as those of a large base do
# (from 32 MiB on). Of this small base's, an amount that differs from run to run would stay in the heap.
M_MMAP_THRESHOLD = -3


def peak_bytes() -> int:
    return next(int(x.split()[1]) * 1024 for x in open("/proc/self/status") if x.startswith("VmHWM"))


def main() -> None:
    model_folder, output, way, dtype = sys.argv[1:5]
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 1 << 16)
    ranks, dtype = init_distributed(), getattr(torch, dtype)
    before = peak_bytes()
    model = load_base(model_folder, memory=MemoryConfig(), window=None, dtype=dtype, seed=3, check=ranks.is_main)
    if way == "partitioned":
        partition_frozen(model, SETTINGS, ranks.device)
    peak = peak_bytes() - before
    held = sum(p.ds_tensor.numel() * p.element_size() if hasattr(p, "ds_id") else p.nbytes for p in model.parameters())
    digests = {}
    for name, parameter in model.named_parameters():
        whole = deepspeed.zero.GatheredParameters([parameter]) if hasattr(parameter, "ds_id") else None
        with whole or contextlib.nullcontext():
            raw = parameter.detach().contiguous().view(torch.uint8).numpy().tobytes()
        digests[name] = [str(parameter.dtype), hashlib.sha256(raw).hexdigest(), hasattr(parameter, "ds_id")]
    facts = {"peak_bytes": peak, "held_bytes": held, "parameters": digests}
    Path(output, f"rank{ranks.rank}.json").write_text(json.dumps(facts))
    leave_distributed()


if __name__ == "__main__":
    main()
