"""Suite `efficiency` in the report."""

from typing import Any

from pipeline.attention.window import WindowSpec
from pipeline.evaluation.efficiency.plots import plot_efficiency
from pipeline.evaluation.efficiency.summary import GROWING, figures_of, is_measured
from pipeline.evaluation.suite import Picture, Record, Section, Table
from pipeline.evaluation.variant_style import label

MIB = 2**20


def make_section(summary: dict[str, Any], window: WindowSpec, new_tokens: int, prefill_chunk: int) -> Section:
    """Growth, the picture, and every context folded away."""
    contexts, growth = summary["contexts"], summary["growth"]
    longest, threads = max(r["length"] for r in contexts), max(r["threads"] for r in contexts)
    devices = sorted({r["device"] for r in contexts})
    lead = (
        f"A context of up to {longest:,} tokens ({longest / window.lossless_budget:.3g} W) read in parts of at most "
        f"{prefill_chunk:,} tokens, then {new_tokens} tokens one by one."
    )
    apart = "" if len(devices) == 1 else " Do not compare times of different devices; the growth does not."
    note = (
        f"Taken by the first process on {' and '.join(devices)}, with {threads} CPU thread(s), after its other work; "
        f"the other processes named below were free to work on. Reading: median of up to 3 times. Decoding: median of "
        f"{new_tokens} tokens after one that is not timed, logits included; reading computes none, the accounted FLOPs "
        f"have them for every token. Buffers grow by doubling, with full attention without end and otherwise up to W "
        f"= {window.lossless_budget:,} tokens, so any cache of fewer tokens, and any with full attention, may hold up "
        f"to twice what it needs. {label('memory_off')} and {label('full_yarn')} cost what {label('ahn')} and "
        f"{label('full')} cost.{apart}"
    )
    caption = "Dots: measured. Lines in the two lower panels: accounting (pipeline/metrics/accounting.py)."
    title, alt = "Time and memory against the length of the context", "Time, cache and FLOPs by length of the context"
    pictures = [Picture(plot_efficiency(contexts), alt, caption)] if any(map(is_measured, contexts)) else []
    tables = [*([_growth(growth)] if any(growth.values()) else []), _contexts(contexts)]
    return Section(title, lead, (), tables, pictures, note=note)


def _growth(growth: dict[str, list[dict[str, float]]]) -> Table:
    rows = [
        [label(variant), f"{steps[-1]['from']:,} to {steps[-1]['to']:,}",
         *(f"x {steps[-1][name]:.2f}" for name in GROWING)]
        for variant, steps in growth.items()
        if steps
    ]  # fmt: skip
    caption = "When the context doubles, between the two longest that were measured"
    emphasised = [i for i, row in enumerate(rows) if row[0] == label("ahn")]
    return Table(["attention", "tokens", "time to read it", "time of a new token", "cache"], rows, caption, emphasised)


def _contexts(contexts: list[Record]) -> Table:
    header = ["attention", "tokens", "read (s)", "new token (ms)", "cache (MiB)", "accounted, as kept (MiB)",
              "accounted, paper's formula (MiB)", "read (GFLOPs)", "new token (GFLOPs)"]  # fmt: skip
    on_cuda = any(r["peak_bytes"] is not None for r in contexts)
    rows = []
    for r in contexts:
        accounted = ["", "", "", ""]
        if r["accounted"] is not None:
            a = r["accounted"]
            accounted = [f"{a['kept_bytes'] / MIB:.2f}", f"{a['cache_bytes'] / MIB:.2f}",
                         f"{a['prefill_flops'] / 1e9:,.1f}", f"{a['decode_flops'] / 1e9:.3f}"]  # fmt: skip
        peak = [] if not on_cuda else [""] if r["peak_bytes"] is None else [f"{r['peak_bytes'] / MIB:,.0f}"]
        rows.append([label(r["variant"]), f"{r['length']:,}", *figures_of(r), *accounted, *peak])
    header = [*header, "CUDA peak (MiB)"] if on_cuda else header
    return Table(header, rows, f"All {len(rows)} contexts", is_folded=True)
