"""Which device a process computes on: one rule for training, capture, evaluation and generation."""

import os

import torch


def choose_device(local_rank: int = 0) -> torch.device:
    """The process's own GPU, made the current one, or the CPU.

    A launcher may let each process of a node see all its GPUs (deepspeed, torchrun), or only its own, which is then
    number 0 whatever the local rank (`srun --gpus-per-task=1`, CUDA_VISIBLE_DEVICES).
    """
    if not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", local_rank % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return device


def tell_deepspeed(device: torch.device) -> None:
    """Sets LOCAL_RANK, which DeepSpeed takes for the number of the process's GPU, to that number."""
    if device.type != "cuda":
        return
    os.environ["LOCAL_RANK"] = str(device.index)
    if "OMPI_COMM_WORLD_LOCAL_RANK" in os.environ:  # DeepSpeed wants the two to be equal
        os.environ["OMPI_COMM_WORLD_LOCAL_RANK"] = str(device.index)
