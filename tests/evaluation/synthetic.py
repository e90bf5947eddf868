"""Records with a known answer, as a real evaluation would write them."""

import numpy as np

from pipeline.attention.window import WindowSpec
from pipeline.evaluation.records import PieceRecord

WINDOW = WindowSpec(num_sink_tokens=32, window_size=96)


def make_record(document: str, key: str, length: int, seed: int, ahn_share: float = 0.85) -> PieceRecord:
    """KL of the window about 0.3 nats, rising with the position; AHN's is `ahn_share` of it with noise."""
    rng = np.random.default_rng(seed)
    positions = np.arange(WINDOW.lossless_budget, length - 1)
    kl_window = rng.gamma(2.0, 0.1 + 0.1 * (positions - 128) / 1024)
    kl_ahn = kl_window * rng.uniform(ahn_share - 0.1, ahn_share + 0.1, size=len(positions))
    nll = rng.gamma(2.0, 0.8, size=len(positions))
    return PieceRecord(
        key=key,
        document=document,
        length=length,
        positions=positions.tolist(),
        kl_window=kl_window.tolist(),
        kl_ahn=kl_ahn.tolist(),
        nll_full=nll.tolist(),
        nll_window=(nll + kl_window).tolist(),
        nll_ahn=(nll + kl_ahn).tolist(),
        seconds=2.0,
        num_ranks=2,
        peak_rss_gib=1.5,
    )
