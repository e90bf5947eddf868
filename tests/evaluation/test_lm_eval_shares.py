"""What a process says when another one has failed."""

import os
import subprocess
import sys

import pytest
import torch
import torch.distributed as dist

from pipeline.errors import UserError
from pipeline.evaluation.lm_eval_model import HippocampusLM
from pipeline.model.loading import load_model

OTHER = """
import os, sys, torch.distributed as dist
dist.init_process_group("gloo", init_method=sys.argv[1], rank=1, world_size=2)
os._exit(2)
"""


@pytest.mark.timeout(60)
def test_a_failed_process_is_one_line_in_the_others(folder, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    place = f"file://{tmp_path / 'store'}"
    with subprocess.Popen([sys.executable, "-c", OTHER, place], env=os.environ) as other:
        dist.init_process_group("gloo", init_method=place, rank=0, world_size=2)
        try:
            lm = HippocampusLM(load_model(str(folder / "base"), dtype=torch.float32), tokenizer)
            assert other.wait() == 2 and lm.world_size == 2
            for meet in (lm.barrier, lambda: lm.gather_object([1])):
                with pytest.raises(UserError, match=r"^another process failed; its line says why$"):
                    meet()
        finally:
            dist.destroy_process_group()
