"""Training steps with the teacher on the fly and from its cache, in turn in one process: SmolLM2-135M, real text,
seconds of processor time. Peak memory is that of two further runs of one step, each in a process of its own.

What the cache can save: the student takes keys, values and hidden states of the lossless prefix (W of L tokens) from
the teacher's pass; without a teacher, it runs these W tokens itself. So a cached step is shorter by the teacher's body
over L tokens less that over W. `limit` is the ratio of both steps' matrix products.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from pydoc_data.topics import topics

from torch import nn

from pipeline.config import TeacherCacheConfig, TrainRunConfig, parse_cli
from pipeline.data.collate import Batch
from pipeline.distributed.groups import Ranks, init_distributed
from pipeline.teacher.capture import run_capture
from pipeline.teacher.capture_plan import plan_capture
from pipeline.teacher.online import compute_prefixes, compute_teacher_hidden
from pipeline.training.preflight import preflight
from pipeline.training.stop_flag import StopFlag
from pipeline.training.trainer import Trainer
from tests.benchmarks.timing import report, seconds

ROOT = Path(__file__).parents[2]
MODEL = ROOT / ".cache" / "smollm2-135m"
RUNS = (  # tokens a sample, lossless budget, sinks, pairs of steps, signals
    (2048, 128, 32, 4, ("hidden", "topk", "sampled")),
    (2048, 1024, 128, 2, ("hidden",)),
    (8000, 512, 128, 2, ("hidden",)),
)


def run() -> dict:
    if not MODEL.is_dir():
        raise SystemExit(f"error: {MODEL} is missing; run launchers/demo/fetch_model.py")
    ranks, captures, rows = init_distributed(), [], []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for number, (length, budget, sinks, num_pairs, signals) in enumerate(RUNS):
            data = prepare_text(root, length)
            for signal in signals:
                cache = root / f"cache-{length}-{signal}"
                if not cache.is_dir():
                    captures.append({"tokens": length, "signal": signal} | _capture(cache, data, signal))
                runs = root / f"runs-{number}-{signal}"
                facts = {"tokens": length, "budget": budget, "sinks": sinks, "signal": signal}
                times = _measure(data, cache, runs, budget, sinks, num_pairs, ranks)
                rows.append(facts | times | _peaks(data, cache, runs, budget, sinks))
                print(rows[-1], flush=True)
    return {
        "captures": report("the offline job", captures),
        "steps": report("steps with the teacher on the fly and from its cache", rows),
    }


def prepare_text(root: Path, length: int) -> Path:
    """Four documents of about `length` tokens, the odd one as two samples."""
    data, text = root / f"data-{length}", root / f"text-{length}"
    if not data.is_dir():
        text.mkdir()
        words = "\n".join(topics[name] for name in sorted(topics))
        for number in range(4):
            (text / f"{number}.txt").write_text(words[number * 4 * length :][: int(4.1 * length)])
        flags = ["--tokenizer", MODEL, "--seq_len", length, "--packing", "none", "--output", data]
        command = [sys.executable, ROOT / "launchers" / "prepare.py", "--inputs", text, *flags]
        subprocess.run([str(part) for part in command], check=True, capture_output=True, timeout=300)
    return data


def _capture(output: Path, data: Path, signal: str) -> dict[str, float]:
    """Writes the cache; loading the model counts."""
    named = {"model": MODEL, "data": data, "output": output, "signal": signal, "base_dtype": "float32"}
    flags = [f"--{name}={value}" for name, value in named.items()]
    plan = plan_capture(parse_cli(TeacherCacheConfig, [*flags, "--min_budget=128"]))
    start = time.process_time()
    outcome = run_capture(plan, 0, 1, 0)
    return {
        "tokens_a_s": plan.dataset.num_tokens / (time.process_time() - start),
        "bytes_a_position": outcome.num_bytes / outcome.num_positions,
    }


def step_flags(data: Path, output: Path, budget: int, sinks: int) -> list[str]:
    given = {
        "model": MODEL,
        "data": data,
        "output": output,
        "ds_config": ROOT / "ds_configs" / "zero2.json",
        "window.budgets": [budget],
        "window.sinks": [sinks],
        "train.global_batch_size": 1,
        "train.base_dtype": "float32",
    }
    return [f"--{name}={value}" for name, value in given.items()]


def _peaks(data: Path, cache: Path, runs: Path, budget: int, sinks: int) -> dict[str, float]:
    """GiB of one step, model and optimizer included; freed blocks go back at once, so that no fragments count."""
    exact, peaks = os.environ | {"MALLOC_MMAP_THRESHOLD_": "1000000", "OMP_NUM_THREADS": "1"}, {}
    for teacher, more in (("online", []), ("cached", [f"--teacher_cache={cache}"])):
        output = runs / f"peak-{teacher}"
        flags = [*step_flags(data, output, budget, sinks), "--train.max_steps=1", *more]
        # Through a launcher: the peak of a child of this process would begin with the peak of this process.
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", ROOT / "launchers" / "train.py"]
        command = [str(part) for part in (*launcher, *flags)]
        subprocess.run(command, check=True, capture_output=True, timeout=1800, env=exact)
        rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
        peaks[f"{teacher}_peak_gib"] = max(row["mem/peak_rss_gib"] for row in rows if "mem/peak_rss_gib" in row)
    return peaks


def _measure(
    data: Path, cache: Path, runs: Path, budget: int, sinks: int, num_pairs: int, ranks: Ranks
) -> dict[str, float]:
    steps = "--train.max_steps=100"
    more = {"online": [steps], "cached": [steps, f"--teacher_cache={cache}"]}
    plans = [[*step_flags(data, runs / name, budget, sinks), *flags] for name, flags in more.items()]
    online, cached = (Trainer(preflight(parse_cli(TrainRunConfig, plan)), StopFlag(), ranks) for plan in plans)
    decoder, pairs, bodies = online.engine.module.model.get_decoder(), [], []
    batch, _ = (_full_batch(trainer) for trainer in (cached, online))  # both, so that both go on with the same sample
    compute_teacher_hidden(decoder, batch)  # to warm up
    for number in range(num_pairs):
        order = (online, cached) if number % 2 else (cached, online)  # whoever is second finds memory ready
        taken = {trainer: timed_step(trainer) for trainer in order}
        pairs.append((taken[online], taken[cached]))
        bodies.append([seconds(partial(run, decoder, batch)) for run in (compute_teacher_hidden, compute_prefixes)])
    for trainer in (online, cached):
        trainer.batches.close()
    times = [(a["seconds"], b["seconds"]) for a, b in pairs]
    return {
        "online_s": statistics.median(a for a, _ in times),
        "cached_s": statistics.median(b for _, b in times),
        "ratio": statistics.median(a / b for a, b in times),
        "limit": _limit(decoder, len(batch.input_ids[0]), budget),
        "teacher_s": statistics.median(teacher for teacher, _ in bodies),
        "prefix_s": statistics.median(prefix for _, prefix in bodies),
        "saved_of_teacher": statistics.median((a - b) / t for (a, b), (t, _) in zip(times, bodies, strict=True)),
        "reader_share": max(b["waited"] for _, b in pairs),
        "first_loss_differs": pairs[0][1]["loss"] / pairs[0][0]["loss"] - 1,
    }


def _full_batch(trainer: Trainer) -> Batch:
    """The trainer's next batch that is not a sample's last tokens, too few to supervise anything."""
    while True:
        batch = trainer.batches.next_step().micro_batches[0]
        if len(batch.positions) > 0:
            return batch


def _limit(decoder: nn.Module, length: int, budget: int) -> float:
    """Multiplications of a step with the teacher on the fly over those of one from hidden states.

    Of a frozen matrix the backward pass needs one product more, of attention two; activation checkpointing repeats
    the forward; of the head there are three.
    """
    config, layers = decoder.config, decoder.layers
    matrices = sum(p.numel() for n, p in layers.named_parameters() if p.ndim == 2 and ".ahn." not in n)
    heads = len(layers) * config.num_attention_heads * config.head_dim
    suffix = length - budget
    teacher, prefix = (n * matrices + n * n * heads for n in (length, budget))
    student = suffix * (3 * matrices + 4 * 2 * budget * heads + 3 * config.hidden_size * config.vocab_size)
    return (teacher + student) / (prefix + student)


def timed_step(trainer: Trainer) -> dict[str, float]:
    row = {}
    while "loss/kl" not in row:  # a sample's last tokens may be another sample, too short to supervise anything
        start = time.process_time()
        row = trainer.train_step()
        used = time.process_time() - start
    return {"seconds": used, "waited": row["perf/data_s"] / row["perf/step_s"], "loss": row["loss/kl"]}
