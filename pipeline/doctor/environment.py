"""What the machine and the launcher offer: versions, devices, variables, room."""

import importlib.metadata
import os
import platform
import shutil
import socket

import torch

PACKAGES = (
    *("torch", "transformers", "deepspeed", "flash-linear-attention", "triton", "flash-attn", "mpi4py"),
    *("datasets", "webdataset", "safetensors", "tokenizers", "numpy"),
)
VARIABLES = (
    *("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS"),
    *("GLOO_SOCKET_IFNAME", "HF_HOME", "HF_HUB_OFFLINE", "TORCH_EXTENSIONS_DIR"),
)
PREFIXES = ("SLURM_JOB", "SLURM_N", "SLURM_PROCID", "OMPI_COMM_WORLD", "PMI_", "NCCL_")


def collect_versions() -> dict[str, str]:
    """Package -> version, or `not installed`."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def collect_machine() -> dict[str, str]:
    """Host, processors, memory, devices and free room, one line each."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    facts = {
        "host": socket.gethostname(),
        "processors": f"{os.cpu_count()}, of which this process may use {len(os.sched_getaffinity(0))}",
        "memory": f"{memory:.0f} GiB",
    }
    for name, path in (("/dev/shm", "/dev/shm"), ("current folder", ".")):
        usage = shutil.disk_usage(path)
        facts[name] = f"{usage.free / 2**30:.1f} of {usage.total / 2**30:.1f} GiB free"
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        facts[f"GPU {index}"] = (
            f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB, sm_{properties.major}{properties.minor}"
        )
    if not torch.cuda.is_available():
        facts["GPU"] = "none: the checks of GPU kernels are left out"
    else:
        facts["CUDA"], facts["NCCL"] = torch.version.cuda, ".".join(map(str, torch.cuda.nccl.version()))
    return facts


def collect_variables() -> dict[str, str]:
    """Variables that launchers set or distributed libraries read."""
    return {k: v for k, v in sorted(os.environ.items()) if k in VARIABLES or k.startswith(PREFIXES)}
