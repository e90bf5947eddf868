"""How many evicted facts each memory recalls, measured on a tiny base that needs them, against what it could recall.

    python launchers/recall_study.py --output runs/recall        # about half an hour on one CPU core

Trains the base once (kept by seed and configuration), then every cell and seed through prepare.py and train.py, and
scores them. Writes recall.json and recall.txt. A stopped study goes on.
"""

import json
import shlex
import subprocess
import sys
from functools import partial
from pathlib import Path

from tqdm import tqdm

from pipeline.config import RecallStudyConfig, parse_cli, to_plain
from pipeline.errors import UserError, run_cli

REPOSITORY = Path(__file__).resolve().parents[1]
LAUNCHERS = REPOSITORY / "launchers"


def main() -> None:
    config = parse_cli(RecallStudyConfig)
    claim_output(config)
    from pipeline.evaluation.recall.base import find_base
    from pipeline.evaluation.recall.study import grid_of, keep_scores, score_adapter, score_base
    from pipeline.evaluation.recall.summary import BaseScores, MemoryScores, format_table, summarise

    base = find_base(config.output / "bases", config.task, config.base).resolve()
    scores, points = config.output / "scores", grid_of(config)
    of_base, of_cells = [], {cell: [] for cell in config.cells}
    with tqdm(total=len(config.seeds) * (1 + len(config.cells)), desc="study", unit="run") as bar:
        for seed in config.seeds:
            compute = partial(score_base, base, config, points, seed)
            of_base.append(keep_scores(scores / f"base-seed{seed}.json", BaseScores, compute))
            bar.update()
            for cell in config.cells:
                run = config.output / f"runs/{cell}-seed{seed}"
                path = scores / f"{run.name}.json"
                if not path.exists():
                    distil(config, base, run, cell, seed)
                compute = partial(score_adapter, run / "adapter", config, points, seed)
                of_cells[cell].append(keep_scores(path, MemoryScores, compute))
                bar.update()
    rows = summarise(points, of_base, of_cells)
    result = {"settings": to_plain(config), "base": base.name, "points": rows}
    (config.output / "recall.json").write_text(json.dumps(result, indent=1) + "\n")
    (config.output / "recall.txt").write_text(format_table(rows) + "\n")
    print(format_table(rows))
    print(f"results: {config.output / 'recall.json'}")


def claim_output(config: RecallStudyConfig) -> None:
    """Marks --output as this study's; cells and seeds may be added to it.

    Raises:
        UserError: it holds a study with other settings.
    """
    settings = {name: value for name, value in to_plain(config).items() if name not in ("output", "cells", "seeds")}
    path = config.output / "study.json"
    if path.is_file() and json.loads(path.read_text()) != settings:
        raise UserError(f"--output {config.output} holds a study with other settings (study.json); choose another")
    config.output.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(settings, indent=1) + "\n")


def distil(config: RecallStudyConfig, base: Path, run: Path, cell: str, seed: int) -> None:
    """Packs the documents of `seed`, each a sample of its own, and trains one memory on them."""
    from pipeline.evaluation.recall.documents import document_length, write_corpus

    corpus, data, task = config.output / f"data/seed{seed}.jsonl", config.output / f"data/seed{seed}", config.task
    corpus.parent.mkdir(exist_ok=True)
    write_corpus(corpus, task, config.train_documents, config.facts, config.distances, seed)
    length = document_length(task, max(config.facts), max(config.distances))
    packing = ["--packing", "none", "--append_eos", "false", "--seq_len", length]
    run_launcher("prepare.py", "--inputs", corpus, "--tokenizer", base, "--output", data, *packing)

    sinks, window = task.num_sink_tokens, task.window_size
    settings = ["--config", config.recipe or LAUNCHERS / "recipes/recall.yaml"]
    settings += ["--ds_config", REPOSITORY / "ds_configs/zero1.json", "--train.seed", seed]
    settings += ["--memory.cell", cell, "--memory.init", config.init]
    settings += ["--window.budgets", [sinks + window], "--window.sinks", [sinks]]
    settings += ["--window.inference_sinks", sinks, "--window.inference_window", window]
    run_launcher("train.py", *settings, "--model", base, "--data", data, "--output", run)


def run_launcher(name: str, *arguments: object) -> None:
    """Runs launchers/`name` in a process of its own.

    Raises:
        UserError: it failed.
    """
    command = [sys.executable, str(LAUNCHERS / name), *map(str, arguments)]
    print(f"$ {shlex.join(command)}", flush=True)
    done = subprocess.run(command)
    if done.returncode != 0:
        raise UserError(f"{name}: exit code {done.returncode}; run the study again to go on from there")


if __name__ == "__main__":
    run_cli(main)
