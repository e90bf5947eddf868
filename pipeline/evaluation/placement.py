"""Device and dtype of a model that only infers."""

import os
import platform
from typing import Literal

import torch


def choose_device(local_rank: int = 0) -> torch.device:
    """The process's own GPU, or the CPU."""
    return torch.device("cuda", local_rank) if torch.cuda.is_available() else torch.device("cpu")


def name_device() -> str:
    """The machine's first GPU, or its CPU, as a report prints it."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{os.cpu_count()} x {platform.machine()} CPU"


def choose_dtype(name: Literal["auto", "float32", "bfloat16"], device: torch.device) -> torch.dtype:
    """`auto` is bfloat16 on CUDA and float32 on a CPU, where bfloat16 is no faster."""
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return getattr(torch, name)
