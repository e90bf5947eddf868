"""Writes report.json, documents.jsonl and report.html (self-contained: no script, pictures inside)."""

import base64
import json
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, StrictUndefined

from pipeline.attention.window import WindowSpec
from pipeline.evaluation.plots import plot_documents, plot_kl_by_position, plot_training
from pipeline.evaluation.records import PieceRecord, write_atomically
from pipeline.evaluation.summary import bin_positions, sum_documents, summarise
from pipeline.evaluation.training_curve import TrainingCurve


def write_report(
    folder: Path,
    records: list[PieceRecord],
    window: WindowSpec,
    facts: dict[str, dict[str, str]],
    curve: TrainingCurve | None,
) -> dict:
    """Writes the three files into `folder` and returns report.json's content.

    Args:
        folder: the evaluation's output.
        records: every piece, in order.
        window: what attention kept.
        facts: sections of name -> value to print below the results (weights, data, machine).
        curve: of the training run, if it is known.
    """
    summary = summarise(records, window)
    documents = sum_documents(records)
    pictures = {
        "position": plot_kl_by_position(bin_positions(records, window)),
        "documents": plot_documents(documents),
        "training": None if curve is None else plot_training(curve),
    }
    page = render_page(summary, documents, pictures, facts)
    lines = "".join(json.dumps(asdict(record)) + "\n" for record in records)
    write_atomically(folder / "documents.jsonl", lines)
    write_atomically(folder / "report.html", page)
    write_atomically(folder / "report.json", json.dumps(summary, indent=1) + "\n")
    return summary


def render_page(
    summary: dict, documents: list, pictures: dict[str, bytes | None], facts: dict[str, dict[str, str]]
) -> str:
    """Fills report.html; every value is escaped."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(files("pipeline.evaluation").joinpath("report.html").read_text("utf-8"))
    sources = {
        name: png and f"data:image/png;base64,{base64.b64encode(png).decode()}" for name, png in pictures.items()
    }
    return template.render(summary=summary, documents=documents, pictures=sources, facts=facts)
