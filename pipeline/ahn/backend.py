"""Which kernels the cells run on: decided once per device type, logged, overridable by a test."""

import functools
import importlib.util
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Literal

import torch

logger = logging.getLogger(__name__)
Backend = Literal["torch", "fla"]


@functools.cache
def _resolve(device_type: str) -> Backend:
    if device_type != "cuda":
        return "torch"
    missing = [name for name in ("fla", "triton") if importlib.util.find_spec(name) is None]
    if missing:
        logger.warning(
            "AHN cells run as plain torch on CUDA, several times slower than they could: %s not installed "
            "(pip install -r requirements.txt -r requirements-gpu.txt)",
            " and ".join(missing),
        )
        return "torch"
    logger.info("AHN cells run on fla's Triton kernels")
    return "fla"


_override: ContextVar[Backend | None] = ContextVar("ahn_backend", default=None)


def resolve_backend(device: torch.device) -> Backend:
    """`fla` on CUDA when it can be imported, else `torch`."""
    return _override.get() or _resolve(device.type)


@contextmanager
def use_backend(backend: Backend) -> Iterator[None]:
    """Forces a backend, for tests and parity checks."""
    token = _override.set(backend)
    try:
        yield
    finally:
        _override.reset(token)
