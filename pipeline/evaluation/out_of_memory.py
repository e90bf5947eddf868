"""What is to be said where a device has not the memory for a measurement."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from pipeline.errors import UserError


def is_out_of_memory(error: Exception) -> bool:
    """Whether it says so, of CUDA or of a CPU, whose allocator has no class of its own."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)


@contextmanager
def within_memory(what: str, remedy: str) -> Iterator[None]:
    """Around what takes memory.

    Raises:
        UserError: there was not enough of it for `what`; `remedy` says what takes less.
    """
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise UserError(f"{what}: out of memory ({str(error).partition(chr(10))[0][:200]}); {remedy}") from error
