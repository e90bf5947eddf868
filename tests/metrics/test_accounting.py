"""Accounting against the paper's published figures and against what our cache really holds."""

import json
import subprocess
import sys

import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from pipeline.attention.window import WindowSpec
from pipeline.config import MemoryConfig
from pipeline.errors import UserError
from pipeline.metrics.accounting import compute_account, count_parameters
from pipeline.metrics.architecture import PRESETS, load_architecture
from pipeline.model.cache import HippocampusCache
from pipeline.model.loading import load_base

PUBLISHED = {  # mixer full, AHN; model full, AHN (e15 FLOPs); cache full, AHN (GB); 7B FLOPs by the formula
    "qwen2.5-3b": (2.50, 1.17, 3.29, 1.95, 9.44, 2.45),
    "qwen2.5-7b": (3.50, 1.69, 5.24, 3.42, 14.7, 3.81),
    "qwen2.5-14b": (8.83, 4.38, 11.83, 7.39, 50.33, 13.01),
}


@pytest.mark.parametrize("model", PUBLISHED)
def test_figures_are_the_published_ones(model):
    account = compute_account(PRESETS[model], "gated_delta_net", 128_000, WindowSpec(128, 32_640))
    flops = (account.mixer_flops.full, account.mixer_flops.ahn, account.model_flops.full, account.model_flops.ahn)
    found = [x / 1e15 for x in flops] + [account.cache_bytes.full / 1e9, account.cache_bytes.ahn / 1e9]
    assert found == pytest.approx(PUBLISHED[model], rel=0.004)
    assert account.kept_bytes > account.cache_bytes.ahn


@pytest.mark.parametrize("cell", ["gated_delta_net", "delta_net", "mamba2"])
def test_parameters_and_kept_bytes_are_those_of_a_real_model(cell, tmp_path):
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4,
             "num_key_value_heads": 2, "vocab_size": 50}  # fmt: skip
    Qwen2ForCausalLM(Qwen2Config(**sizes)).save_pretrained(tmp_path)
    window = WindowSpec(4, 12)
    model = load_base(str(tmp_path), memory=MemoryConfig(cell=cell), window=window, dtype=torch.bfloat16)
    architecture = load_architecture(str(tmp_path))
    assert count_parameters(architecture, cell) == sum(p.numel() for p in model.parameters() if p.requires_grad)
    cache = HippocampusCache(model.config, window)
    with torch.no_grad():
        model(torch.ones(2, 40, dtype=torch.int64), past_key_values=cache)
    account = compute_account(architecture, cell, 40, window, bytes_per_element=2, rows=2)
    assert cache.num_bytes() == account.kept_bytes


def test_the_command_prints_a_table_and_writes_json(tmp_path):
    command = [sys.executable, "-m", "pipeline.metrics.accounting", "--json", str(tmp_path / "a.json")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "12.98 M" in done.stdout and "59.4%" in done.stdout and "26.0%" in done.stdout
    assert json.loads((tmp_path / "a.json").read_text())["ratios"]["model_flops"] == pytest.approx(0.594, abs=5e-4)
    with pytest.raises(UserError, match=r"qwen9.*qwen2\.5-3b"):
        load_architecture("qwen9")
