"""`python -m tests.benchmarks [NAME ...]` (all of NAMES): prints tables, writes runs/benchmarks.json."""

import importlib
import json
import platform
from pathlib import Path

import torch

from pipeline.flags import ToolParser, suggestion

NAMES = (
    "attention",
    "retained_attention",
    "cells",
    "loss",
    "decoding",
    "retained_decoding",
    "loader",
    "tokenization",
    "packing",
    "teacher_signals",
    "teacher_steps",
    "retained_steps",
)


def main() -> None:
    parser = ToolParser("tests.benchmarks", "Prints tables and writes runs/benchmarks.json.", "")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)} (default: all)")
    names = parser.parse_args().names or NAMES
    if unknown := sorted(set(names) - set(NAMES)):
        parser.error(f"no benchmark {unknown[0]}{suggestion(unknown[0], NAMES)}")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    results = {name: importlib.import_module(f"tests.benchmarks.{name}").run() for name in names}
    output = Path(__file__).parents[2] / "runs" / "benchmarks.json"
    output.parent.mkdir(exist_ok=True)
    results["machine"] = {"processor": platform.processor() or platform.machine(), "torch": torch.__version__}
    output.write_text(json.dumps(results, indent=1) + "\n")
    print(f"\n{output}")


if __name__ == "__main__":
    main()
