"""How many evicted facts each memory recalls, measured on a tiny base that needs them, against what it could recall.

    python launchers/recall_study.py --output runs/recall        # about half an hour on one CPU core

Trains the base once (kept by seed and configuration), then every cell and seed through prepare.py and train.py, and
scores them. Writes recall.json and recall.txt. A stopped study goes on. With --retained, also memories that keep some
of the evicted tokens as they are.
"""

import json
import shlex
import subprocess
import sys
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from tqdm import tqdm

from pipeline.config import RecallStudyConfig, parse_cli, to_plain
from pipeline.errors import GOES_ON, UserError, run_cli
from pipeline.evaluation.starts import note_start
from pipeline.evaluation.writing import write_atomically, writes_to

REPOSITORY = Path(__file__).resolve().parents[1]
LAUNCHERS = REPOSITORY / "launchers"


def main() -> None:
    config = parse_cli(RecallStudyConfig)
    claim_output(config)
    from pipeline.evaluation.recall.base import find_base
    from pipeline.evaluation.recall.retained import count_layer_bytes, score_retaining_adapter
    from pipeline.evaluation.recall.study import grid_of, keep_scores, score_adapter, score_base
    from pipeline.evaluation.recall.summary import BaseScores, MemoryScores, RetainedScores, summarise, write_results

    base = find_base(config.output / "bases", config.task, config.base).resolve()
    scores, points = config.output / "scores", grid_of(config)
    of_base, of_cells = [], {count: {cell: [] for cell in config.cells} for count in config.retained}
    adapters, memories = {}, list(product(config.retained, config.cells))
    with tqdm(total=len(config.seeds) * (1 + len(memories)), desc="study", unit="run") as bar:
        for seed in config.seeds:
            compute = partial(score_base, base, config, points, seed)
            of_base.append(keep_scores(scores / f"base-seed{seed}.json", BaseScores, len(points), compute))
            bar.update()
            for count, cell in memories:
                run = config.output / "runs" / name_run(cell, count, seed)
                path = scores / f"{run.name}.json"
                if not path.exists():
                    distil(config, base, run, cell, count, seed)
                kind, score = (RetainedScores, score_retaining_adapter) if count else (MemoryScores, score_adapter)
                adapters[count, cell] = run / "adapter"
                compute = partial(score, run / "adapter", config, points, seed)
                of_cells[count][cell].append(keep_scores(path, kind, len(points), compute))
                bar.update()
    alone = of_cells.pop(0, {})
    held = {count: {cell: count_layer_bytes(adapters[count, cell]) for cell in config.cells} for count in of_cells}
    print(write_results(config, base.name, summarise(points, of_base, alone, of_cells), held))
    print(f"results: {config.output / 'recall.json'}")


def name_run(cell: str, num_retained: int, seed: int) -> str:
    """The folder of one memory's training, under --output/runs."""
    return f"{cell}-retained{num_retained}-seed{seed}" if num_retained else f"{cell}-seed{seed}"


def claim_output(config: RecallStudyConfig) -> None:
    """Marks --output as this study's; cells, seeds and numbers of retained tokens may be added to it, and until there
    are scores or runs of a base, another base may be tried.

    Raises:
        UserError: it holds a study with other settings, or cannot be written.
    """
    open_ended = ("output", "cells", "retained", "seeds")
    settings = {name: value for name, value in to_plain(config).items() if name not in open_ended}
    path = config.output / "study.json"
    if path.is_file():
        is_begun = any(any((config.output / name).glob("*")) for name in ("scores", "runs"))
        found = read_settings(path)
        fixed = (found.keys() | settings.keys()) - (set() if is_begun else {"base"})
        other = sorted(name for name in fixed if found.get(name) != settings.get(name))
        if other:
            raise UserError(
                f"--output {config.output} holds a study with other settings (study.json: {', '.join(other)}); choose "
                f"another"
            )
    try:
        (config.output / "bases").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output {config.output}: {error.strerror}; name a folder that can be written") from error
    with writes_to(config.output):
        write_atomically(path, json.dumps(settings, indent=1) + "\n")
    note_start(config.output)


def read_settings(path: Path) -> dict[str, Any]:
    """The settings of the study that --output holds.

    Raises:
        UserError: they are damaged.
    """
    try:
        found = json.loads(path.read_bytes())
        if not isinstance(found, dict):
            raise ValueError("not the settings of a study")
    except ValueError as error:
        raise UserError(
            f"--output {path.parent}: study.json is damaged ({error}); put it back, or choose another folder"
        ) from error
    return found


def distil(config: RecallStudyConfig, base: Path, run: Path, cell: str, num_retained: int, seed: int) -> None:
    """Packs the documents of `seed`, each a sample of its own, and trains one memory on them.

    Raises:
        UserError: --output cannot be written, or a launcher failed.
    """
    from pipeline.evaluation.recall.documents import document_length, write_corpus

    corpus, data, task = config.output / f"data/seed{seed}.jsonl", config.output / f"data/seed{seed}", config.task
    with writes_to(config.output):
        corpus.parent.mkdir(exist_ok=True)
        write_corpus(corpus, task, config.train_documents, config.facts, config.distances, seed)
    length = document_length(task, max(config.facts), max(config.distances))
    packing = ["--packing", "none", "--append_eos", "false", "--seq_len", length]
    run_launcher("prepare.py", "--inputs", corpus, "--tokenizer", base, "--output", data, *packing)

    sinks, window = task.num_sink_tokens, task.window_size
    settings = ["--config", config.recipe or LAUNCHERS / "recipes/recall.yaml"]
    settings += ["--ds_config", REPOSITORY / "ds_configs/zero1.json", "--train.seed", seed]
    settings += ["--memory.cell", cell, "--memory.init", config.init]
    settings += ["--window.budgets", [sinks + window], "--window.sinks", [sinks], "--window.retained", [num_retained]]
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
    run_cli(main, GOES_ON)
