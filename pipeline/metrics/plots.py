"""Curves of a training run and its one-page report, from metrics.jsonl."""

import base64
import io
import json
from pathlib import Path
from typing import Any

import jinja2
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from pipeline.metrics.logger import read_metrics
from pipeline.metrics.scorer_plot import plot_scorers, scorer_facts

LOSS_KEYS = ("loss/kl", "loss/ce")
PHASES = ("data", "teacher", "student", "backward", "optimizer")  # follow each other; the rest of a step is "other"
_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>{{ title }}</title>
<style>body{font:15px sans-serif;max-width:60em;margin:2em auto}td{padding:.2em 1em .2em 0}img{width:100%}
pre{background:#f4f4f4;padding:1em;overflow:auto}</style>
<h1>{{ title }}</h1>
<table>{% for name, value in facts %}<tr><td>{{ name }}</td><td><b>{{ value }}</b></td></tr>{% endfor %}</table>
{% if scorers %}<h2>Scorers of retained tokens</h2>
<img alt="their loss while they were fitted, and by layer" src="data:image/png;base64,{{ scorers }}">{% endif %}
{% if phases %}<img alt="loss and learning rate over steps" src="data:image/png;base64,{{ curve }}">
<h2>Where the time goes</h2>
<img alt="seconds of each phase over steps" src="data:image/png;base64,{{ phases }}">{% endif %}
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


def plot_phases(metrics: list[dict[str, Any]]) -> bytes:
    """PNG with the seconds of the main rank's phases over steps, stacked up to the whole step."""
    figure = Figure(figsize=(9, 3), layout="constrained")
    FigureCanvasAgg(figure)
    axes, seconds = figure.subplots(), stack_phases(metrics)
    axes.stackplot([row["step"] for row in metrics], *map(_smoothed, seconds.values()), labels=list(seconds))
    axes.plot(
        [row["step"] for row in metrics],
        _smoothed([row.get("perf/comm_s", 0.0) for row in metrics]),
        color="black",
        label="exchanges (within)",
    )
    axes.set_ylabel("seconds a step, smoothed")
    axes.set_xlabel("step")
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=110)
    return image.getvalue()


def stack_phases(metrics: list[dict[str, Any]]) -> dict[str, list[float]]:
    """Seconds of each phase in each step, and of what is in none; they add up to the step's."""
    seconds = {name: [row.get(f"perf/{name}_s", 0.0) for row in metrics] for name in PHASES}
    known = [sum(values) for values in zip(*seconds.values(), strict=True)]
    seconds["other"] = [max(0.0, row["perf/step_s"] - part) for row, part in zip(metrics, known, strict=True)]
    return seconds


def write_training_report(metrics_path: Path, scorers: Path, configuration: str, output: Path) -> None:
    """Writes the self-contained HTML page and, beside it, training.png.

    Args:
        metrics_path: the run's metrics.jsonl.
        scorers: the run's scorers.json, which need not be there.
        configuration: the resolved configuration as text.
        output: the HTML file.
    """
    metrics = [row for row in read_metrics(metrics_path) if row["step"] > 0]
    curve = plot_training(metrics)
    facts = json.loads(scorers.read_text()) if scorers.is_file() else None
    output.with_name("training.png").write_bytes(curve)
    page = jinja2.Environment(autoescape=True).from_string(_PAGE)
    output.write_text(
        page.render(
            title=f"Training run {output.parent.name}",
            facts=([] if facts is None else scorer_facts(facts)) + _facts(metrics),
            scorers=None if facts is None else base64.b64encode(plot_scorers(facts)).decode(),
            curve=base64.b64encode(curve).decode(),
            phases=base64.b64encode(plot_phases(metrics)).decode() if metrics else None,
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
        *_efficiency(metrics, seconds),
    ]


def _efficiency(metrics: list[dict[str, Any]], seconds: float) -> list[tuple[str, str]]:
    """Utilisation of the devices, where their peak is known, and what slow ranks and slow data cost."""
    timed = [row for row in metrics if "perf/step_s_max" in row]
    facts = []
    if any("perf/mfu" in row for row in metrics):
        used = sum(row.get("perf/mfu", 0.0) * row["perf/step_s"] for row in metrics) / max(seconds, 1e-9)
        facts.append(("model FLOPs utilisation", f"{used:.1%}"))
    if timed:
        slowest, mean, waited = (
            sum(row[f"perf/{name}"] for row in timed) for name in ("step_s_max", "step_s_mean", "data_s_max")
        )
        facts.append(("slowest rank over the mean", f"{slowest / mean - 1:+.1%}"))
        facts.append(("waiting for data, slowest rank", f"{waited / max(seconds, 1e-9):.1%} of the time"))
    return facts


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
