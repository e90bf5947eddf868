"""The GPU of a process, whether it sees all of its node or its own alone; CUDA's answers are given to it."""

import os
import re
from pathlib import Path

import pytest
import torch

from pipeline.distributed.device import choose_device, tell_deepspeed

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(("visible", "local_rank", "expected"), [(8, 3, 3), (1, 3, 0), (1, 0, 0), (2, 5, 1)])
def test_a_process_takes_the_gpu_that_it_sees(monkeypatch, visible, local_rank, expected):
    taken = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: visible)
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    for name in ("LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_RANK"):
        monkeypatch.setenv(name, str(local_rank))
    device = choose_device(local_rank)
    tell_deepspeed(device)
    assert device == torch.device("cuda", expected) and taken == [device]
    assert os.environ["LOCAL_RANK"] == os.environ["OMPI_COMM_WORLD_LOCAL_RANK"] == str(expected)


def test_without_a_gpu_it_is_the_cpu_and_the_local_rank_stays(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("LOCAL_RANK", "3")
    device = choose_device(3)
    tell_deepspeed(device)
    assert device == torch.device("cpu") and os.environ["LOCAL_RANK"] == "3"


def test_nothing_else_chooses_a_gpu():
    """So that no launcher takes the raw local rank again."""
    chooses = re.compile(r"cuda\.set_device\(|torch\.device\(f?\"cuda|\.to\(f?\"cuda|\.cuda\(")
    sources = [path for name in ("pipeline", "launchers") for path in (REPOSITORY / name).rglob("*.py")]
    found = [path.relative_to(REPOSITORY) for path in sources if chooses.search(path.read_text())]
    assert found == [Path("pipeline/distributed/device.py")]
