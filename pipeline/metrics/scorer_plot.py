"""How the scorers of retained tokens were fitted, for the training report."""

import io
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure


def plot_scorers(facts: dict[str, Any]) -> bytes:
    """PNG with the loss at each evaluation, and before and after by layer.

    Args:
        facts: the content of a run's scorers.json.
    """
    figure = Figure(figsize=(9, 3), layout="constrained")
    FigureCanvasAgg(figure)
    over_time, by_layer = figure.subplots(1, 2)
    over_time.plot(facts["losses"], color="tab:blue")
    over_time.set_xlabel("evaluation")
    over_time.set_ylabel("Poisson loss per unit of attention")
    for name, label in (("before", "one rate a head"), ("after", "scores")):
        by_layer.plot(facts[name], marker=".", label=label)
    by_layer.set_xlabel("layer with a memory")
    by_layer.legend()
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=110)
    return image.getvalue()


def scorer_facts(facts: dict[str, Any]) -> list[tuple[str, str]]:
    """Rows of the report's table, from the content of a run's scorers.json."""
    before, after = (sum(facts[name]) / len(facts[name]) for name in ("before", "after"))
    return [
        ("scorers fitted to", f"{facts['candidates']:,} tokens of {facts['samples']} samples"),
        ("their loss, one rate a head and fitted", f"{before:.3f} → {after:.3f}"),
        ("seconds of forwards and of the fit", f"{facts['forward_s']:.1f} + {facts['fit_s']:.1f}"),
    ]
