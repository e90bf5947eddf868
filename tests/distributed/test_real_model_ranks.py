"""SmolLM2-135M on real text, on one rank and on several in every way of sharing the work: same losses, and how many
tokens a second; how long a small run takes to its first step. Figures of an otherwise idle machine."""

import statistics
import sys
import time
from pathlib import Path
from pydoc_data.topics import topics

import pytest

from pipeline.config import TeacherCacheConfig, parse_cli
from pipeline.metrics.logger import read_metrics
from pipeline.teacher.capture import run_capture
from pipeline.teacher.capture_plan import plan_capture
from tests.distributed.processes import REPOSITORY, deepspeed_command, environment, run, started
from tests.drill import record
from tests.training import launched_runs
from tests.training.test_launch import LAUNCHERS

pytestmark = [pytest.mark.drill, pytest.mark.timeout(3600)]
SEQ_LEN, BUDGET, NUM_STEPS, GLOBAL_BATCH = 1024, 256, 4, 2
ULYSSES = ["--sequence_parallel_size=3"]  # the model has three key-value heads
HALO = ["--sequence_parallel_size=2", "--sequence_parallel_mode=halo"]
RUNS = {  # ranks, flags, whether the teacher's signals come from a cache
    "1 rank": (1, [], False),
    "2 ranks, data parallel": (2, [], False),
    "3 ranks, Ulysses": (3, ULYSSES, False),
    "1 rank, cached": (1, [], True),
    "2 ranks, data parallel, cached": (2, [], True),
    "3 ranks, Ulysses, cached": (3, ULYSSES, True),
    "2 ranks, halo, cached": (2, HALO, True),
}


def prepare(model: Path, root: Path) -> Path:
    """One document a sample, each of SEQ_LEN tokens."""
    (root / "text").mkdir()
    texts = [topics[name] for name in sorted(topics) if len(topics[name]) > 6 * SEQ_LEN][: NUM_STEPS * GLOBAL_BATCH]
    for number, text in enumerate(texts):
        (root / "text" / f"{number}.txt").write_text(text[: 6 * SEQ_LEN])
    flags = [f"--tokenizer={model}", f"--inputs={root / 'text'}", f"--seq_len={SEQ_LEN}", f"--output={root / 'data'}"]
    prepared = run([sys.executable, REPOSITORY / "launchers" / "prepare.py", *flags], root / "log")
    assert prepared.returncode == 0, prepared.output
    return root / "data"


def test_ways_of_sharing_the_work(smollm2, tmp_path):
    data, cache = prepare(smollm2, tmp_path), tmp_path / "cache"
    common = [f"--model={smollm2}", f"--data={data}"]
    signal = ["--signal=hidden", "--dtype=float32", "--base_dtype=float32", f"--min_budget={BUDGET}"]
    plan = plan_capture(parse_cli(TeacherCacheConfig, [*common, f"--output={cache}", *signal]))
    assert run_capture(plan, 0, 1, 0).num_left == 0
    common += [f"--ds_config={REPOSITORY / 'ds_configs' / 'zero2.json'}", f"--window.budgets=[{BUDGET}]"]
    common += [f"--train.max_steps={NUM_STEPS}", f"--train.global_batch_size={GLOBAL_BATCH}"]
    common += [f"--window.sinks=[{BUDGET // 8}]", "--train.base_dtype=float32"]
    table, due = {}, None
    for name, (num_ranks, flags, cached) in RUNS.items():
        output = tmp_path / name
        flags = [*common, f"--output={output}", *flags, *([f"--teacher_cache={cache}"] if cached else [])]
        finished = run(deepspeed_command(num_ranks, flags), tmp_path / "log", timeout=900)
        assert finished.returncode == 0, finished.output[-3000:]
        rows = read_metrics(output / "metrics.jsonl")
        losses = [row["loss/kl"] for row in rows]
        due = due or losses
        difference = max(abs(loss / expected - 1) for loss, expected in zip(losses, due, strict=True))
        assert difference < 1e-4, (name, losses, due)
        table[name] = {
            "largest_relative_difference_of_a_loss": difference,
            "tokens_a_second": statistics.median(row["perf/tokens_per_s"] for row in rows[1:]),
            "peak_gib_of_a_rank": max(row["mem/peak_rss_gib"] for row in rows),
        }
        print(name, table[name], flush=True)
    record("real_model_ranks", {"seconds_to_the_first_step": first_steps(tmp_path), "runs": table})


def first_steps(root: Path) -> dict[str, float]:
    """Of two ranks of a tiny model, from the command on, by launcher; the second of two starts."""
    inputs, found = launched_runs.make_inputs(root / "inputs"), {}
    for name, command in LAUNCHERS.items():
        for attempt in range(2):
            output = root / f"{name} {attempt}"
            begin = time.monotonic()
            with started([*command(), *launched_runs.arguments(inputs, output)], root / "log", environment()):
                launched_runs.wait_for_step(output, 1, begin + 60)
                found[name] = time.monotonic() - begin
        assert found[name] < 15, found
    return found
