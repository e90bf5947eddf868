"""Name of the device and dtype of a model that only infers."""

import os
import platform
from typing import Literal

import torch


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
