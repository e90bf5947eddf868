"""Writes report.json, summary.txt, examples.jsonl and report.html (self-contained: no script, pictures inside)."""

import base64
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, StrictUndefined

from pipeline.evaluation.drawing import QUIET, draw
from pipeline.evaluation.evictions import describe_evictions, summarise_evictions
from pipeline.evaluation.suite import Picture, Record, Section, Suite
from pipeline.evaluation.terminal import format_sections
from pipeline.evaluation.training_curve import TrainingCurve
from pipeline.evaluation.writing import write_atomically, writes_to

TRAINING_COLOUR = "#1b6ca8"
SUMMARY_NAME = "summary.txt"


@dataclass(frozen=True)
class SuiteResult:
    """A suite and what was measured of all its units, by key, in order. `why_unmeasured`: a sentence for a suite
    that has no units."""

    suite: Suite
    records: Mapping[str, Record]
    why_unmeasured: str = ""


def write_report(
    folder: Path, results: Sequence[SuiteResult], facts: dict[str, dict[str, str]], curve: TrainingCurve | None
) -> dict:
    """Writes the four files into `folder` and returns report.json's content: each suite's summary by its name, with
    what was `evicted` first.

    Args:
        folder: the evaluation's output.
        results: of every suite.
        facts: sections of name -> value to print below the results (weights, data, machine).
        curve: of the training run, if it is known.

    Raises:
        UserError: `folder` cannot be written.
    """
    measured = [result for result in results if not result.why_unmeasured]
    summary = {
        result.suite.name: {"evicted": _evictions(result), **result.suite.summarise(result.records)}
        for result in measured
    }
    sections = [section for result in measured for section in _sections(result, summary[result.suite.name])]
    sections += [
        Section(f"Not measured: {result.suite.name}", result.why_unmeasured + ".")
        for result in results
        if result.why_unmeasured
    ]
    if curve is not None:
        picture = Picture(plot_training(curve), "Training loss by optimizer step")
        sections.append(Section("Training", pictures=[picture]))
    lines = "".join(
        json.dumps({"suite": result.suite.name, "key": key, **record}) + "\n"
        for result in results
        for key, record in result.records.items()
    )
    page, text = render_page(sections, facts), format_sections(sections)
    with writes_to(folder):
        write_atomically(folder / "examples.jsonl", lines)
        write_atomically(folder / "report.html", page)
        write_atomically(folder / SUMMARY_NAME, f"{text}\n")
        write_atomically(folder / "report.json", json.dumps(summary, indent=1) + "\n")
    return summary


def _evictions(result: SuiteResult) -> dict[str, Any]:
    of_units = (record["evicted"] for record in result.records.values())
    return summarise_evictions(Counter(n for of_unit in of_units for n in np.atleast_1d(of_unit).tolist()))


def _sections(result: SuiteResult, summary: dict[str, Any]) -> Iterator[Section]:
    """The suite's, which begin with what was evicted; where nothing was, their titles do."""
    evicted = summary["evicted"]
    for number, section in enumerate(result.suite.sections(summary, result.records)):
        lead = f"{describe_evictions(evicted)} {section.lead}" if number == 0 else section.lead
        title = section.title if evicted["max"] > 0 else f"Nothing evicted: {section.title}"
        yield replace(section, title=title, lead=lead)


def render_page(sections: Sequence[Section], facts: dict[str, dict[str, str]]) -> str:
    """Fills report.html; every value is escaped."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["data_uri"] = lambda png: f"data:image/png;base64,{base64.b64encode(png).decode()}"
    environment.filters["anchor"] = lambda title: re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")
    template = environment.from_string(files("pipeline.evaluation").joinpath("report.html").read_text("utf-8"))
    return template.render(sections=sections, facts=facts)


def plot_training(curve: TrainingCurve) -> bytes:
    """The run's training loss, with a running mean over about a tenth of the run."""
    with draw(2.7) as ((axes,), drawing):
        losses = curve.losses
        width = max(5, len(losses) // 10)
        means = [sum(losses[max(0, i - width + 1) : i + 1]) / min(i + 1, width) for i in range(len(losses))]
        axes.plot(curve.steps, losses, color=QUIET, alpha=0.55, linewidth=1, label="step")
        axes.plot(curve.steps, means, color=TRAINING_COLOUR, linewidth=2, label=f"mean of the last {width} steps")
        axes.set_xlabel("optimizer step")
        axes.set_ylabel(curve.label)
        axes.legend(frameon=False)
    return drawing.png
