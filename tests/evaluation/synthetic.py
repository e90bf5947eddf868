"""Records with a known answer, as suite `heldout` would write them."""

from typing import Any

import numpy as np

from pipeline.attention.window import WindowSpec

WINDOW = WindowSpec(num_sink_tokens=32, window_size=96)


def make_record(document: str, length: int, seed: int, ahn_share: float = 0.85) -> dict[str, Any]:
    """KL of the window about 0.3 nats, rising with the position; AHN's is `ahn_share` of it with noise."""
    rng = np.random.default_rng(seed)
    positions = np.arange(WINDOW.lossless_budget, length - 1)
    window = rng.gamma(2.0, 0.1 + 0.1 * (positions - 128) / 1024)
    ahn = window * rng.uniform(ahn_share - 0.1, ahn_share + 0.1, size=len(positions))
    nll = rng.gamma(2.0, 0.8, size=len(positions))
    return {
        "document": document,
        "length": length,
        "positions": positions.tolist(),
        "kl": {"window": window.tolist(), "ahn": ahn.tolist()},
        "nll": {"full": nll.tolist(), "window": (nll + window).tolist(), "ahn": (nll + ahn).tolist()},
    }
