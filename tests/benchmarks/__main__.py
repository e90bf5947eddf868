"""`python -m tests.benchmarks [NAME ...]` (all of NAMES): prints tables, writes runs/benchmarks.json."""

import importlib
import json
import platform
import sys
from pathlib import Path

import torch

NAMES = (
    "attention",
    "cells",
    "loss",
    "decoding",
    "loader",
    "tokenization",
    "packing",
    "teacher_signals",
    "teacher_steps",
)


def main() -> None:
    names = sys.argv[1:] or NAMES
    if unknown := set(names) - set(NAMES):
        sys.exit(f"error: no benchmark {sorted(unknown)}; there are {', '.join(NAMES)}")
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
