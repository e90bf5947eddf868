"""Training steps on SmolLM2-135M with 64 retained tokens against steps without any, in turn in one process: the demo's
window, teacher on the fly, seconds of processor time."""

import statistics
import tempfile
from pathlib import Path

from pipeline.config import TrainRunConfig, parse_cli
from pipeline.distributed.groups import init_distributed
from pipeline.training.preflight import preflight
from pipeline.training.stop_flag import StopFlag
from pipeline.training.trainer import Trainer
from tests.benchmarks.teacher_steps import MODEL, prepare_text, step_flags, timed_step
from tests.benchmarks.timing import report

LENGTHS, NUM_PAIRS = (1024, 2048), 4
BUDGET, SINKS, RETAINED = 128, 32, 64


def run() -> list[dict]:
    if not MODEL.is_dir():
        raise SystemExit(f"error: {MODEL} is missing; run launchers/demo/fetch_model.py")
    ranks, rows = init_distributed(), []
    with tempfile.TemporaryDirectory() as folder:
        for length in LENGTHS:
            data, trainers = prepare_text(Path(folder), length), {}
            for retained in (0, RETAINED):
                flags = step_flags(data, Path(folder) / f"run-{length}-{retained}", BUDGET, SINKS)
                more = [f"--window.retained=[{retained}]", "--train.max_steps=100", "--train.scorer_samples=2"]
                trainers[retained] = Trainer(preflight(parse_cli(TrainRunConfig, [*flags, *more])), StopFlag(), ranks)
            pairs = []
            for number in range(NUM_PAIRS + 1):  # the first to warm up
                order = (0, RETAINED) if number % 2 else (RETAINED, 0)
                taken = {retained: timed_step(trainers[retained])["seconds"] for retained in order}
                pairs.append((taken[0], taken[RETAINED]))
            for trainer in trainers.values():
                trainer.batches.close()
            without, with_retained = (statistics.median(x) for x in zip(*pairs[1:], strict=True))
            ratio = statistics.median(b / a for a, b in pairs[1:])
            rows.append({"tokens": length, "without_s": without, "with_64_s": with_retained, "ratio": ratio})
    return report("training steps with 64 retained tokens against none", rows)
