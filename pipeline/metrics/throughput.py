"""How much memory the process has needed so far."""

import resource

import torch

GIB = 2**30


def peak_memory_gib(device: torch.device) -> tuple[str, float]:
    """Metric key and value: peak allocated GPU memory on CUDA, else the process's peak resident set. GiB."""
    if device.type == "cuda":
        return "mem/peak_gib", torch.cuda.max_memory_allocated(device) / GIB
    return "mem/peak_rss_gib", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB
