"""Decoding SmolLM2-135M with sinks + window 1,024 and 64 retained tokens, decided on one and 32 at a time, after 8,000
tokens against after 1,200, beside a window wider by as many; bytes kept."""

import statistics

import torch
from torch import nn

from pipeline.attention.window import WindowSpec
from pipeline.config import MemoryConfig
from pipeline.metrics.accounting import compute_account
from pipeline.metrics.architecture import load_architecture
from pipeline.model.augment import memory_layers
from pipeline.model.cache import HippocampusCache
from pipeline.model.generation import absorb
from pipeline.model.loading import load_base, set_window
from tests.benchmarks.decoding import MODEL, PREFILL_CHUNK, WINDOW
from tests.benchmarks.timing import report, seconds

SINKS, RECENT = WINDOW.num_sink_tokens, WINDOW.window_size
WINDOWS = {
    "window wider by 64": WindowSpec(SINKS, RECENT + 64),
    "M = 64, C = 1": WindowSpec(SINKS, RECENT, 64),
    "M = 64, C = 32": WindowSpec(SINKS, RECENT, 64, 32),
}
SHORT, LONG, NUM_TOKENS = 1200, 8000, 32


def absorbed(model: nn.Module, tokens: torch.Tensor, window: WindowSpec) -> HippocampusCache:
    set_window(model, window)
    return absorb(model, tokens, PREFILL_CHUNK)


@torch.no_grad()
def run() -> list[dict]:
    if not MODEL.is_dir():
        raise SystemExit(f"error: {MODEL} is missing; run launchers/demo/fetch_model.py")
    options = {"window": WINDOW, "has_scorer": True, "dtype": torch.float32}
    model = load_base(str(MODEL), memory=MemoryConfig(), **options).eval()
    for layer in memory_layers(model).values():  # any scores but all the same
        nn.init.normal_(layer.ahn.retention.weight)
    tokens = torch.randint(0, model.config.vocab_size, (1, LONG))
    caches = {
        (name, length): absorbed(model, tokens[:, :length], window)
        for name, window in WINDOWS.items()
        for length in (SHORT, LONG)
    }
    times: dict[tuple[str, int], list[float]] = {key: [] for key in caches}
    for _ in range(NUM_TOKENS):
        for key, cache in caches.items():
            times[key].append(seconds(lambda c=cache: model(tokens[:, :1], past_key_values=c, logits_to_keep=1)))
    architecture, rows = load_architecture(str(MODEL)), []
    for name, window in WINDOWS.items():
        # Means: with C = 32 one token in 32 waits for a decision.
        short, long = (1e3 * statistics.mean(times[name, length]) for length in (SHORT, LONG))
        kept = caches[name, LONG].num_bytes()
        assert kept == compute_account(architecture, "gated_delta_net", LONG + NUM_TOKENS, window).kept_bytes
        rows.append({"what": name, f"ms_after_{SHORT}": short, f"ms_after_{LONG}": long, "ratio": long / short,
                     "kept_bytes": kept})  # fmt: skip
    return report("decoding with retained tokens, process milliseconds a token", rows)
