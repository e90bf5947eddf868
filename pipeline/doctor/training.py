"""Twenty real distillation steps of a small random model on this machine's device."""

import tempfile
import time
from collections.abc import Iterator

import numpy as np
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from pipeline.attention.window import WindowSpec
from pipeline.config import MemoryConfig
from pipeline.data.collate import DrawnSample, collate
from pipeline.data.shard_format import PackedSample
from pipeline.doctor.checks import Check, run_checks
from pipeline.metrics.throughput import peak_memory_gib
from pipeline.model.loading import load_base
from pipeline.training.distillation import Distillation

NUM_STEPS, LENGTH, WINDOW = 20, 384, WindowSpec(num_sink_tokens=16, window_size=48)


def run_all(device: torch.device) -> Iterator[Check]:
    """Kernels first, then training."""
    yield from run_checks(device)
    yield check_training(device)


def check_training(device: torch.device) -> Check:
    """The loss must fall; the detail holds tokens/s and peak memory."""
    torch.manual_seed(0)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    config = Qwen2Config(hidden_size=256, intermediate_size=512, num_hidden_layers=4, num_attention_heads=4,
                         num_key_value_heads=2, vocab_size=2000)  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        base = Qwen2ForCausalLM(config)
        for parameter in base.parameters():  # attention of a random model is near uniform: nothing to remember
            if parameter.ndim == 2:
                torch.nn.init.normal_(parameter, std=0.08)
        base.save_pretrained(folder)
        model = load_base(folder, memory=MemoryConfig(), window=WINDOW, dtype=dtype).to(device)
    tokens = np.random.default_rng(0).integers(0, 2000, LENGTH, dtype=np.uint32)
    sample = PackedSample("doctor", tokens, np.array([0, LENGTH], np.int32), None, {})
    batch = collate([DrawnSample(0, sample, WINDOW)]).to(device)
    weights = torch.full((len(batch.positions),), 1 / len(batch.positions), device=device)
    distillation = Distillation(model, "kl", loss_chunk_size=256)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    losses, started = [], time.perf_counter()
    for _ in range(NUM_STEPS):
        loss = distillation(batch, weights)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    seconds = time.perf_counter() - started
    name, peak = peak_memory_gib(device)
    return Check(
        f"{NUM_STEPS} training steps, {str(dtype).removeprefix('torch.')}",
        "ok" if losses[-1] < 0.9 * losses[0] else "failed",
        f"KL {losses[0]:.4f} -> {losses[-1]:.4f}, {NUM_STEPS * LENGTH / seconds:.0f} tokens/s, {name} {peak:.2f}",
    )
