"""Curves of a training run and its one-page report, from metrics.jsonl."""

import base64
import io
from pathlib import Path
from typing import Any

import jinja2
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from pipeline.metrics.logger import read_metrics

LOSS_KEYS = ("loss/kl", "loss/ce")
_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>{{ title }}</title>
<style>body{font:15px sans-serif;max-width:60em;margin:2em auto}td{padding:.2em 1em .2em 0}img{width:100%}
pre{background:#f4f4f4;padding:1em;overflow:auto}</style>
<h1>{{ title }}</h1>
<table>{% for name, value in facts %}<tr><td>{{ name }}</td><td><b>{{ value }}</b></td></tr>{% endfor %}</table>
<img alt="loss and learning rate over steps" src="data:image/png;base64,{{ curve }}">
<h2>Configuration</h2><pre>{{ configuration }}</pre>
</html>
"""


def plot_training(metrics: list[dict[str, Any]]) -> bytes:
    """PNG with the loss (raw and smoothed), learning rate and gradient norm over steps."""
    figure = Figure(figsize=(9, 6), layout="constrained")
    FigureCanvasAgg(figure)
    loss_axes, rate_axes, norm_axes = figure.subplots(3, 1, sharex=True, height_ratios=(3, 1, 1))
    key, rows = _loss_rows(metrics)
    steps = [row["step"] for row in rows]
    losses = [row[key] for row in rows]
    loss_axes.plot(steps, losses, color="tab:blue", alpha=0.35, label=key)
    loss_axes.plot(steps, _smoothed(losses), color="tab:blue", label="smoothed")
    loss_axes.set_ylabel("nats per token")
    loss_axes.legend()
    rate_axes.plot(steps, [row["optim/lr"] for row in rows], color="tab:green")
    rate_axes.set_ylabel("learning rate")
    norm_axes.plot(steps, [row["optim/grad_norm"] for row in rows], color="tab:red")
    norm_axes.set_ylabel("gradient norm")
    norm_axes.set_xlabel("step")
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=110)
    return image.getvalue()


def write_training_report(metrics_path: Path, configuration: str, output: Path) -> None:
    """Writes the self-contained HTML page and, beside it, training.png.

    Args:
        metrics_path: the run's metrics.jsonl.
        configuration: the resolved configuration as text.
        output: the HTML file.
    """
    metrics = read_metrics(metrics_path)
    curve = plot_training(metrics)
    output.with_name("training.png").write_bytes(curve)
    page = jinja2.Environment(autoescape=True).from_string(_PAGE)
    output.write_text(
        page.render(
            title=f"Training run {output.parent.name}",
            facts=_facts(metrics),
            curve=base64.b64encode(curve).decode(),
            configuration=configuration,
        )
    )


def _facts(metrics: list[dict[str, Any]]) -> list[tuple[str, str]]:
    key, rows = _loss_rows(metrics)
    tenth = max(1, len(rows) // 10)
    first, last = (sum(r[key] for r in part) / max(1, len(part)) for part in (rows[:tenth], rows[-tenth:]))
    seconds = sum(row["perf/step_s"] for row in metrics)
    tokens = sum(row["data/tokens"] for row in metrics)
    peaks = [value for row in metrics for name, value in row.items() if name.startswith("mem/")]
    return [
        ("steps", f"{len(metrics)} ({len(metrics) - len(rows)} skipped: nothing to supervise)"),
        (f"{key}, mean of the first and last {tenth} steps", f"{first:.4f} → {last:.4f}"),
        ("supervised positions", f"{sum(row['data/positions'] for row in metrics):,}"),
        ("tokens", f"{tokens:,} at {tokens / max(seconds, 1e-9):,.0f} a second"),
        ("peak memory", f"{max(peaks, default=0.0):.2f} GiB a rank"),
    ]


def _loss_rows(metrics: list[dict[str, Any]]) -> tuple[str, list[dict[str, Any]]]:
    """The loss's key and the steps that have one."""
    key = next((key for row in metrics for key in LOSS_KEYS if key in row), LOSS_KEYS[0])
    return key, [row for row in metrics if key in row]


def _smoothed(values: list[float], keep: float = 0.9) -> list[float]:
    """Exponential moving average, corrected for its start."""
    average, weight, smoothed = 0.0, 0.0, []
    for value in values:
        average, weight = keep * average + (1 - keep) * value, keep * weight + (1 - keep)
        smoothed.append(average / weight)
    return smoothed
