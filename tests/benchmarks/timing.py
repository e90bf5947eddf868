"""Pairs of runs in turn (A B A B ..), process time, medians: ratios hold while a shared machine's speed drifts."""

import statistics
import time
from collections.abc import Callable

Run = Callable[[], object]


def seconds(run: Run) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def compare(ours: Run, peer: Run, repeats: int = 3) -> tuple[float, float, float]:
    """Median seconds of ours and of the peer, and the median of peer / ours pair by pair; after one warm-up each."""
    ours(), peer()
    pairs = [(seconds(ours), seconds(peer)) for _ in range(repeats)]
    mine, theirs = zip(*pairs, strict=True)
    return statistics.median(mine), statistics.median(theirs), statistics.median(b / a for a, b in pairs)


def report(title: str, rows: list[dict]) -> list[dict]:
    """Prints rows as a table and hands them on."""
    print(f"\n{title}")
    columns = list(rows[0])
    cells = [[f"{row[c]:.3g}" if isinstance(row[c], float) else str(row[c]) for c in columns] for row in rows]
    widths = [max(len(c), *(len(line[i]) for line in cells)) for i, c in enumerate(columns)]
    for line in [columns, *cells]:
        print("  ".join(text.rjust(width) for text, width in zip(line, widths, strict=True)))
    return rows
