"""The training loop: step, log, save, until the steps are done or somebody asks to stop."""

import contextlib
import json
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from pipeline.config import to_plain
from pipeline.data.collate import Batch
from pipeline.data.shard_format import DataError
from pipeline.distributed.groups import Ranks, gather_objects, init_distributed, leave_distributed
from pipeline.metrics.logger import MetricsLogger
from pipeline.metrics.plots import write_training_report
from pipeline.metrics.throughput import peak_memory_gib
from pipeline.model.adapter import save_adapter
from pipeline.training.batches import BatchSource, StepBatches
from pipeline.training.checkpoint import save_checkpoint
from pipeline.training.engine import gather_moments, gather_weights, set_learning_rate
from pipeline.training.preflight import Plan
from pipeline.training.run_folder import RunFolder, write_atomically
from pipeline.training.schedules import learning_rate
from pipeline.training.setup import build_training, claim_output
from pipeline.training.step import NonFiniteError, StepTotals, exchange_totals, run_step
from pipeline.training.stop_flag import EXIT_STOPPED, StopFlag


def run_training(plan: Plan, stop: StopFlag) -> None:
    """Runs, or goes on with, the run of `plan` on this rank.

    Raises:
        UserError: on every rank, when data or numbers go wrong on any.
        SystemExit: EXIT_STOPPED when `stop` ended it early; a checkpoint is there.
    """
    trainer = Trainer(plan, stop, init_distributed())
    trainer.run()
    leave_distributed()
    if trainer.state.step < plan.config.train.max_steps:
        sys.exit(EXIT_STOPPED)


class Trainer:
    """One run as this rank sees it. Every method is collective.

    Args:
        plan: the checked configuration.
        stop: becomes true when the run should save and leave.
        ranks: who this process is.
    """

    def __init__(self, plan: Plan, stop: StopFlag, ranks: Ranks) -> None:
        self.config, self.train, self.stop, self.ranks = plan.config, plan.config.train, stop, ranks
        self.folder = RunFolder(self.config.output)
        self.base_fingerprint = claim_output(plan, ranks)
        self.engine, self.state = build_training(plan, ranks)
        self.saved_step = self.state.step if self.folder.latest_checkpoint() else None
        self.batches = BatchSource(
            plan.stream,
            self.train,
            self.config.window,
            plan.teacher,
            rank=ranks.rank,
            dp_size=ranks.world_size,
            position=self.state.consumed_samples,
            num_steps=self.train.max_steps - self.state.step,
        )

    def run(self) -> None:
        """Trains to the last step, or to the next step boundary once a stop is asked for."""
        with contextlib.ExitStack() as stack:
            stack.enter_context(contextlib.closing(self.batches))
            progress = stack.enter_context(
                tqdm(
                    total=self.train.max_steps,
                    initial=self.state.step,
                    desc="train",
                    unit="step",
                    disable=not self.ranks.is_main,
                )
            )
            metrics = None
            if self.ranks.is_main:
                metrics = stack.enter_context(MetricsLogger(self.folder.metrics, self.state.step))
            while self.state.step < self.train.max_steps:
                row = self.train_step()
                if row is None:  # asked to stop
                    break
                if metrics is not None:
                    metrics.log(row)
                if self.loss_key in row:  # not in a skipped step
                    progress.set_postfix_str(f"loss {row[self.loss_key]:.4f}", refresh=False)
                progress.update()
                if self.state.step % self.train.save_every == 0:
                    self.save(metrics)
            if self.saved_step != self.state.step:
                self.save(metrics)
        if self.ranks.is_main:
            configuration = (self.folder.root / "config.yaml").read_text()
            write_training_report(self.folder.metrics, configuration, self.folder.root / "report.html")

    @property
    def loss_key(self) -> str:
        return f"loss/{self.train.loss}"

    def train_step(self) -> dict[str, Any] | None:
        """One step; its row of metrics.jsonl, or None when a rank was asked to stop."""
        started, read, error = time.perf_counter(), StepBatches([], self.state.consumed_samples), None
        try:
            read = self.batches.next_step()
        except DataError as found:
            error = found
        waited = time.perf_counter() - started
        totals, stop = exchange_totals(read.micro_batches, error, bool(self.stop), self.ranks)
        if stop:
            return None
        rate = learning_rate(self.state.step, self.train.max_steps, self.train.learning_rate, self.train.warmup_ratio)
        row = {"step": self.state.step + 1}
        if totals.num_positions > 0:
            set_learning_rate(self.engine, rate)
            try:
                result = run_step(self.engine, read.micro_batches, totals, self.train.loss_normalisation, self.ranks)
            except NonFiniteError as found:
                raise self._failed(found, read.micro_batches) from found
            row |= {self.loss_key: result.loss, "optim/grad_norm": result.grad_norm, "optim/lr": rate}
            row[peak_memory_gib(self.ranks.device)[0]] = result.peak_memory_gib
        self.state = replace(
            self.state,
            step=self.state.step + 1,
            consumed_samples=read.position,
            skipped_steps=self.state.skipped_steps + (totals.num_positions == 0),
        )
        return row | self._counts(totals, waited, time.perf_counter() - started)

    def _counts(self, totals: StepTotals, waited: float, seconds: float) -> dict[str, Any]:
        counts = {
            "data/positions": totals.num_positions,
            "data/samples": totals.num_samples,
            "data/tokens": totals.num_tokens,
            "data/consumed_samples": self.state.consumed_samples,
            "train/skipped_steps": self.state.skipped_steps,
            "perf/step_s": seconds,
            "perf/data_wait_s": waited,  # of this rank, which is the main one
            "perf/tokens_per_s": totals.num_tokens / seconds,
        }
        if self.config.teacher_cache is not None:
            counts["teacher/cached_samples"] = totals.num_cached_samples
        if totals.num_windows:
            counts["window/budget"] = totals.budget_sum / totals.num_windows
            counts["window/sinks"] = totals.sink_sum / totals.num_windows
        return counts

    def save(self, metrics: MetricsLogger | None) -> None:
        """Exports the adapter and writes a checkpoint of the current state."""
        weights, moments = gather_weights(self.engine), gather_moments(self.engine)
        if self.ranks.is_main:
            if metrics is not None:
                metrics.sync()
            save_adapter(self.folder.adapter, weights, self._adapter_info())
            save_checkpoint(self.folder, self.state, weights, moments, self.train.keep_checkpoints)
        self.saved_step = self.state.step

    def _adapter_info(self) -> dict[str, Any]:
        plain, model = to_plain(self.config), Path(self.config.model)
        return {
            "base_model": str(model.resolve()) if model.is_dir() else self.config.model,
            "base_fingerprint": self.base_fingerprint,
            "memory": plain["memory"],
            "num_sink_tokens": self.config.window.inference_sinks,
            "window_size": self.config.window.inference_window,
            "training": asdict(self.state) | {"window": plain["window"], "train": plain["train"]},
        }

    def _failed(self, error: NonFiniteError, batches: list[Batch]) -> NonFiniteError:
        """Saves the state before the step and which samples it held; the error to end with."""
        if self.saved_step != self.state.step:
            self.save(None)
        step, path = self.state.step + 1, self.folder.root / "failed_step.json"
        samples = [
            {"key": d.sample.key, "global_index": d.global_index, "window": d.window and asdict(d.window)}
            for batch in batches
            for d in batch.samples
        ]
        by_rank = gather_objects(samples, self.ranks)
        if self.ranks.is_main:
            report = {"step": step, "error": str(error), "failed_ranks": error.ranks, "samples_by_rank": by_rank}
            write_atomically(path, json.dumps(report, indent=1).encode())
        keys = [sample["key"] for rank in error.ranks for sample in by_rank[rank]]
        return NonFiniteError(
            f"step {step}: {error}; samples {', '.join(keys[:8])}{', ...' if len(keys) > 8 else ''} (all in {path}); "
            f"nothing was updated, and {self.folder.checkpoints} holds the state before the step",
            error.ranks,
        )
