"""Decoding SmolLM2-135M with sinks + window 1,024: per token, after 8,000 tokens against after 1,024, and against the
base's own cache of 8,000; bytes kept."""

import statistics
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, DynamicCache

from pipeline.attention.window import WindowSpec
from pipeline.config import MemoryConfig
from pipeline.metrics.accounting import compute_account
from pipeline.metrics.architecture import load_architecture
from pipeline.model.generation import absorb
from pipeline.model.loading import load_base
from tests.benchmarks.timing import report, seconds

MODEL = Path(__file__).parents[2] / ".cache" / "smollm2-135m"
WINDOW = WindowSpec(num_sink_tokens=32, window_size=992)
SHORT, LONG, NUM_TOKENS, PREFILL_CHUNK = 1024, 8000, 24, 1000


@torch.no_grad()
def run() -> list[dict]:
    if not MODEL.is_dir():
        raise SystemExit(f"error: {MODEL} is missing; run launchers/demo/fetch_model.py")
    model = load_base(str(MODEL), memory=MemoryConfig(), window=WINDOW, dtype=torch.float32).eval()
    base = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()
    tokens = torch.randint(0, base.config.vocab_size, (1, LONG))
    full = DynamicCache(config=base.config)
    for part in tokens.split(PREFILL_CHUNK, 1):
        base.get_decoder()(input_ids=part, past_key_values=full)
    runs = {
        "AHN after 1,024": (model, absorb(model, tokens[:, :SHORT], PREFILL_CHUNK)),
        "AHN after 8,000": (model, absorb(model, tokens, PREFILL_CHUNK)),
        "base after 8,000": (base, full),
    }
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(NUM_TOKENS):
        for name, (which, cache) in runs.items():
            times[name].append(seconds(lambda w=which, c=cache: w(tokens[:, :1], past_key_values=c, logits_to_keep=1)))
    short, long, whole = (statistics.median(times[name]) for name in runs)
    kept = runs["AHN after 8,000"][1].num_bytes()
    account = compute_account(load_architecture(str(MODEL)), "gated_delta_net", LONG, WINDOW)
    print(f"\nkept {kept:,} bytes; our formula {account.kept_bytes:,}, the paper's {account.cache_bytes.ahn:,.0f} "
          f"(without the window's gates), full attention {account.cache_bytes.full:,.0f}")  # fmt: skip
    assert kept == account.kept_bytes
    rows = [{"what": name, "ms_a_token": statistics.median(values) * 1e3} for name, values in times.items()]
    rows.append({"what": "after 8,000 / after 1,024", "ms_a_token": long / short})
    rows.append({"what": "base / AHN after 8,000", "ms_a_token": whole / long})
    return report("decoding, process milliseconds a token (last two rows: ratios)", rows)
