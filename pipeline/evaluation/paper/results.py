"""What scaled-down runs have left under the repository's folder, as tables; nothing is computed but the accounting."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.attention.window import WindowSpec
from pipeline.evaluation.efficiency.summary import figures_of
from pipeline.evaluation.suite import Table
from pipeline.evaluation.variant_style import label
from pipeline.metrics.accounting import PUBLISHED_FLOPS, compute_account
from pipeline.metrics.architecture import PRESETS
from pipeline.model.files import PUBLISHED_WINDOW

LENGTH = 128_000


def account_table(length: int = LENGTH, window: WindowSpec = PUBLISHED_WINDOW) -> Table:
    """FLOPs and cache bytes of the paper's three models by its formulas, and its own FLOPs beside."""
    rows = []
    for name, architecture in PRESETS.items():
        account = compute_account(architecture, "gated_delta_net", length, window)
        flops, cache, theirs = account.model_flops, account.cache_bytes, PUBLISHED_FLOPS[name]
        rows.append(
            [
                name,
                f"{flops.full:.2e} -> {flops.ahn:.2e} ({flops.ratio:.1%})",
                f"{theirs[2]:.2e} -> {theirs[3]:.2e}",
                f"{cache.full / 1e9:.2f} -> {cache.ahn / 1e9:.2f} GB ({cache.ratio:.1%})",
            ]
        )
    header = ("model", "FLOPs by the formula", "FLOPs as published", "cache by the formula")
    return Table(
        header, rows, f"Full attention -> AHN-GatedDeltaNet, {length:,} tokens, W = {window.lossless_budget:,}"
    )


def read_heldout(root: Path) -> Table | None:
    """KL and perplexity past the window."""
    source, found = _find_suite(root, "heldout")
    if found is None:
        return None
    rows = [
        [label(variant), f"{found['kl'].get(variant, 0):.4f}", f"{ppl:.3f}"] for variant, ppl in found["ppl"].items()
    ]
    if control := found.get("control"):
        rows.append([label("foreign"), f"{control['kl']['foreign']:.4f}", f"{control['ppl']['foreign']:.3f}"])
    caption = f"{source}: {found['num_documents']} held-out documents, {found['num_tokens']:,} tokens past the window"
    return Table(("attention", "KL to full attention", "perplexity"), rows, caption)


def read_needles(root: Path) -> Table | None:
    """Share of needles recalled, evicted ones and those in the window apart."""
    source, found = _find_suite(root, "needles")
    if found is None:
        return None
    rows = [
        [label(variant), *(_share(places[place]["recall"]) for place in ("evicted", "in_window"))]
        for variant, places in found["variants"].items()
    ]
    return Table(("attention", "evicted needles recalled", "in the window"), rows, source)


def read_efficiency(root: Path) -> Table | None:
    """Time and memory by length of the context."""
    source, found = _find_suite(root, "efficiency")
    if found is None:
        return None
    rows = [
        [label(context["variant"]), f"{context['length']:,}", *figures_of(context)] for context in found["contexts"]
    ]
    return Table(("attention", "context", "prefill s", "decode ms a token", "cache MiB"), rows, source)


def read_decoding(root: Path) -> Table | None:
    """Time of a decoded token after short and long contexts."""
    found = _read(root / "docs/results/benchmarks.json").get("decoding")
    if found is None:
        return None
    rows = [
        [row["what"], f"{row['ms_a_token']:.1f}"]
        for row in found
        if " after " in row["what"] and "/" not in row["what"]
    ]
    return Table(("decoding", "ms a token"), rows, "docs/results/benchmarks.json: SmolLM2-135M, one thread")


def read_recall(root: Path) -> Table | None:
    """Shares of evicted facts that a tiny base recalls, and what each memory wins back of what the window loses."""
    sources = ("runs/recall/recall.json", "docs/results/recall.json")
    source, points = next(((s, p) for s in sources if (p := _read(root / s).get("points"))), ("", None))
    if points is None:
        return None
    cells = list(points[0]["cells"])
    rows = [
        [
            str(point["facts"]),
            str(point["distance"]),
            *(f"{point[name]:.1%}" for name in ("full", "window")),
            *(f"{point['cells'][cell]['recovered']:.1%}" for cell in cells),
        ]
        for point in points
    ]
    header = ("facts", "windows between", "full", "sinks + window", *(f"{cell} recovers" for cell in cells))
    return Table(header, rows, source)


def read_probing(root: Path) -> Table | None:
    """Gradients of evicted tokens by kind, relative to their neighbours': small where the memory keeps a token."""
    source, found = _find_suite(root, "probing")
    if found is None:
        return None
    rows = [
        [row["class"], f"{row['tokens']:,}", _ratio(row.get("ratio")), f"{row['relative']:.2f}"]
        for row in found["classes"]
    ]
    return Table(
        ("evicted tokens", "number", "gradient / memories off, over neighbours'", "gradient over neighbours'"),
        rows,
        source,
    )


def read_benchmarks(root: Path) -> Table | None:
    """Averages of LV-Eval on the tasks that were run."""
    found = _read(root / "runs/paper/lveval/report.json").get("lveval")
    if found is None:
        return None
    rows = [[label(variant), f"{average['score']:.2f}"] for variant, average in found["average"].items()]
    return Table(("attention", "score"), rows, f"runs/paper/lveval: LV-Eval's {', '.join(found['tasks'])}")


def read_longbench(root: Path) -> Table | None:
    """Scores of lm-eval's newest run."""
    runs = sorted((root / "runs/paper/longbench").rglob("results_*.json"), key=lambda path: path.stem)
    if not runs:
        return None
    scores = _read(runs[-1])["results"]
    rows = [[task, f"{values['score,none']:.4f}"] for task, values in scores.items()]
    return Table(("task", "score"), rows, str(runs[-1].relative_to(root)))


def read_ablations(root: Path) -> Table | None:
    """KL to full attention of the adapters of the demo and of its two variations, as far as they were evaluated."""
    trained = {
        "KL, window of 128": "runs/demo/evaluation",
        "cross entropy, window of 128": "runs/paper/cross-entropy/evaluation",
        "KL, windows drawn from 128, 256, 512": "runs/paper/drawn-windows/evaluation",
    }
    rows = []
    for name, folder in trained.items():
        kl = _read(root / folder / "report.json").get("heldout", {}).get("kl", {})
        if "ahn" in kl:
            rows.append([name, f"{kl['ahn']:.4f}", f"{kl['window']:.4f}"])
    if len(rows) < len(trained):
        return None
    return Table(("training", "KL to full attention", "of sinks + window"), rows, ", ".join(trained.values()))


def _find_suite(root: Path, suite: str) -> tuple[str, Mapping[str, Any] | None]:
    """The suite's part of its own run's report, else of the demo's, else of the drill's; and where that is."""
    sources = (f"runs/paper/{suite}/report.json", "runs/demo/evaluation/report.json", "docs/results/own_suites.json")
    reports = ((source, _read(root / source).get(suite)) for source in sources)
    return next((report for report in reports if report[1] is not None), ("", None))


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_bytes()) if path.is_file() else {}


def _ratio(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.2f}"


def _share(value: float | None) -> str:
    return "none asked for" if value is None else f"{value:.1%}"
