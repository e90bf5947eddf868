"""Into which blocks attention to retained tokens cuts its queries, and how much it gathers for them. No torch."""

from pipeline.attention.window import WindowSpec

MIN_BLOCK, MAX_BLOCK = 128, 2048
MAX_ROWS = 2**19
"""Keys that are gathered at a time, over all heads and blocks."""


def block_size(window: WindowSpec, num_queries: int) -> int:
    """Queries of a block: of the order of what they see, so that little is gathered for each."""
    wanted = 1 << (window.lossless_budget // 2).bit_length()
    return min(max(MIN_BLOCK, min(wanted, MAX_BLOCK)), num_queries)


def num_columns(window: WindowSpec, block: int) -> int:
    """Keys that a block of queries looks at: sinks, what is held when it starts, and the window up to its end."""
    return window.lossless_budget - 1 + block


def rows_at_once(window: WindowSpec, num_queries: int, num_heads: int) -> int:
    """Keys that are in memory together, of all key-value heads of one text."""
    block = block_size(window, num_queries)
    of_block = num_columns(window, block) * num_heads
    return of_block * min(-(-num_queries // block), max(1, MAX_ROWS // of_block))
