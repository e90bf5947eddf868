"""The whole way, as a user would go it: fetch, prepare, train, evaluate, generate. `make demo` runs this.

    python launchers/demo/run_demo.py           # -> runs/demo; about 10 minutes on 2 CPU cores

Each phase is a command of its own and is printed. A second run does only what is missing.
"""

import json
import os
import shlex
import socket
import subprocess
import sys
import time
from pathlib import Path

from pipeline.config import DemoConfig, parse_cli
from pipeline.errors import GOES_ON, UserError, run_cli
from pipeline.evaluation.heldout.sections import format_summary

REPOSITORY = Path(__file__).resolve().parents[2]
NUM_RANKS = 2
SEQ_LEN, NUM_SINK_TOKENS, WINDOW_SIZE, NUM_RETAINED_TOKENS = 1024, 32, 96, 64
PROMPT_CHARACTERS, NEW_TOKENS = 2400, 48


def build_phases(output: Path, config: DemoConfig) -> dict[str, list[str]]:
    """Phase -> command, in order."""
    launchers = REPOSITORY / "launchers"
    model, run = REPOSITORY / ".cache/smollm2-135m", output / "train"
    python, deepspeed = sys.executable, Path(sys.executable).with_name("deepspeed")

    def prepare(split: str) -> list:
        inputs = ["--inputs", f"@{output}/sources/{split}.txt", "--tokenizer", model]
        packing = ["--seq_len", SEQ_LEN, "--num_workers", NUM_RANKS]
        return [python, launchers / "prepare.py", *inputs, "--output", output / "data" / split, *packing]

    ranks = [deepspeed, "--num_gpus", NUM_RANKS, "--master_port", free_port()]
    settings = [
        "--ds_config",
        REPOSITORY / "ds_configs/zero2.json",
        "--config",
        launchers / "recipes/demo.yaml",
    ]
    training = ["--model", model, "--data", output / "data/train", "--output", run]
    training += [] if config.max_steps is None else ["--train.max_steps", config.max_steps]
    window = ["--num_sink_tokens", NUM_SINK_TOKENS, "--window_size", WINDOW_SIZE]
    trained = ["--model", run / "adapter", "--base", model, *window]
    held_out = ["--data", output / "data/heldout", "--output", output / "evaluation", "--run", run]
    kept = [f"{name}{NUM_RETAINED_TOKENS}" for name in ("wider", "retained")]
    share = ["--suites", "heldout", "--variants", "full", "window", *kept, f"{kept[-1]}_ahn"]
    share += ["--max_documents", config.num_documents, "--pieces_per_document", 1]
    prompt = ["--prompt_file", output / "prompt.txt", "--max_new_tokens", NEW_TOKENS]
    phases = {
        "fetch the model": [python, launchers / "demo/fetch_model.py", "--output", model],
        "list the sources": [python, launchers / "demo/list_sources.py", "--output", output / "sources"],
        "prepare training data": prepare("train"),
        "prepare held-out data": prepare("heldout"),
        "train": [*ranks, launchers / "train.py", *settings, *training],
        "evaluate": [*ranks, launchers / "run_eval.py", *trained, *held_out, *share],
        "generate": [python, launchers / "generate.py", *trained, *prompt],
    }
    return {name: [str(part) for part in command] for name, command in phases.items()}


def free_port() -> int:
    """A port for the ranks of this demo, so that it can run beside others."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def run_phase(name: str, command: list[str], output: Path, keep_output: bool) -> str:
    """Runs one phase from the repository's root; its stdout is returned if kept, else shown.

    Raises:
        UserError: the command failed.
    """
    print(f"\n=== {name}\n$ {shlex.join(command)}", flush=True)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}  # two ranks on two cores: more threads are far slower
    stdout = subprocess.PIPE if keep_output else None
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, stdout=stdout, text=True)
    if done.returncode != 0:
        raise UserError(
            f"{name}: exit code {done.returncode}; run `make demo` again to go on, or remove {output} to begin anew"
        )
    return done.stdout or ""


def write_prompt(output: Path) -> str:
    """Takes the prompt from the middle of the last held-out file, longer than the window."""
    source = Path((output / "sources/heldout.txt").read_text().splitlines()[-1]).read_text(encoding="utf-8")
    start = source.index("\n", len(source) // 3) + 1
    # Without the last line break: a tokenizer joins it to the indent that follows.
    prompt = source[start : start + PROMPT_CHARACTERS].rsplit("\n", 1)[0]
    (output / "prompt.txt").write_text(prompt, encoding="utf-8")
    return prompt


def main() -> None:
    config = parse_cli(DemoConfig)
    output = (config.output or REPOSITORY / "runs/demo").resolve()
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output {output}: {error.strerror}; name a folder that can be written") from error
    phases = build_phases(output, config)
    print(f"demo in {output}: {', '.join(phases)}; finished phases are not done again")
    seconds, continuation = {}, ""
    for name, command in phases.items():
        if name == "generate":
            prompt = write_prompt(output)
        started = time.monotonic()
        continuation = run_phase(name, command, output, keep_output=name == "generate")
        seconds[name] = time.monotonic() - started
    report = json.loads((output / "evaluation/report.json").read_text())
    print("\n=== phase times")
    for name, value in [*seconds.items(), ("total", sum(seconds.values()))]:
        print(f"{name:<24}{value:8.1f} s")
    print("\n=== the last lines of a held-out prompt >>> and their continuation")
    print("\n".join(prompt.splitlines()[-4:]) + " >>>" + continuation)
    print("=== result\n" + format_summary(report["heldout"]))
    print(f"report: {output / 'evaluation/report.html'}")


if __name__ == "__main__":
    run_cli(main, GOES_ON)
