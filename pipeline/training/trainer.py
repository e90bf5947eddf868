"""The training loop: step, log, save, until the steps are done or somebody asks to stop."""

import contextlib
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.data.shard_format import DataError
from pipeline.distributed.groups import Ranks, init_distributed, leave_distributed, raise_together
from pipeline.errors import UserError
from pipeline.folder_claim import FolderClaim
from pipeline.metrics.logger import MetricsLogger
from pipeline.metrics.throughput import peak_memory_gib
from pipeline.model.adapter import save_adapter
from pipeline.training.batches import BatchSource, StepBatches
from pipeline.training.checkpoint import save_checkpoint
from pipeline.training.engine import gather_moments, gather_weights, set_learning_rate
from pipeline.training.export import describe_adapter
from pipeline.training.failed_step import report_failed_step
from pipeline.training.meter import StepMeter
from pipeline.training.preflight import Plan
from pipeline.training.profiling import StepProfiler
from pipeline.training.run_folder import RunFolder
from pipeline.training.saver import Saver, cannot_write
from pipeline.training.schedules import learning_rate
from pipeline.training.scorer_phase import SCORER_FACTS, describe_stop_of_fit, fit_run_scorers, write_facts
from pipeline.training.setup import begin_run, build_training, check_base, claimed_output, find_start
from pipeline.training.step import NonFiniteError, StepTotals, exchange_totals, run_step
from pipeline.training.step_progress import StepProgress
from pipeline.training.stop_flag import EXIT_STOPPED, StopFlag
from pipeline.training.watchdog import StepWatchdog


def run_training(plan: Plan, stop: StopFlag) -> None:
    """Runs, or goes on with, the run of `plan` on this rank.

    Raises:
        UserError: on every rank, when data or numbers go wrong on any.
        SystemExit: EXIT_STOPPED when `stop` ended it early; a checkpoint is there.
    """
    config = plan.config
    ranks = init_distributed(config.sequence_parallel_size, max(1800, config.train.step_timeout_s + 60))
    with claimed_output(plan, ranks) as claim:
        trainer = Trainer(plan, stop, ranks, claim)
        trainer.run()
        leave_distributed()
    if trainer.is_stopped:
        if ranks.is_main:
            print(trainer.describe_stop(), file=sys.stderr, flush=True)
        sys.exit(EXIT_STOPPED)


class Trainer:
    """One run as this rank sees it. Every method is collective.

    Args:
        plan: the checked configuration.
        stop: becomes true when the run should save and leave.
        ranks: who this process is.
        claim: of the output, on the main rank.
    """

    def __init__(self, plan: Plan, stop: StopFlag, ranks: Ranks, claim: FolderClaim | None = None) -> None:
        self.config, self.train, self.stop, self.ranks = plan.config, plan.config.train, stop, ranks
        self.folder, self.stream, self.teacher = RunFolder(self.config.output), plan.stream, plan.teacher
        self.claim = claim
        self.base_fingerprint = check_base(plan, ranks)
        checkpoint = find_start(plan, ranks)
        self.engine, self.state = build_training(plan, ranks, checkpoint)
        begin_run(plan, self.base_fingerprint, ranks)
        self.num_steps = 0 if self.train.loss == "retention" else self.train.max_steps
        self.saved_step = None if checkpoint is None else self.state.step
        self.is_stopped = False  # before its last step, as it was asked to
        self.saver = Saver(self.train.async_save)
        self.failure: UserError | None = None  # of this rank alone; the next exchange ends all with it
        self.meter = StepMeter(self.config, ranks)
        num_micro_batches = self.train.grad_accum_steps(ranks.dp_size)
        self.progress = StepProgress(self.num_steps, self.state.step, num_micro_batches, stop, ranks)
        self.batches = BatchSource(
            self.stream,
            self.train,
            self.config.window,
            plan.teacher,
            rank=ranks.dp_rank,
            dp_size=ranks.dp_size,
            position=self.state.consumed_samples,
            num_steps=self.num_steps - self.state.step,
        )

    def run(self) -> None:
        """Trains to the last step, or until a stop is asked for, to the next boundary that `StepProgress` says."""
        with contextlib.ExitStack() as stack:
            stack.enter_context(contextlib.closing(self.batches))
            stack.enter_context(contextlib.closing(self.saver))
            stack.enter_context(self.progress)
            metrics = None
            if self.ranks.is_main:
                metrics = self._open_metrics(stack)
            watchdog = StepWatchdog(self.folder.stacks, self.ranks.rank, self.train.step_timeout_s)
            stack.enter_context(contextlib.closing(watchdog))
            trace = self.folder.root / "profile" / f"rank-{self.ranks.rank}.json"
            profiler = stack.enter_context(contextlib.closing(StepProfiler(self.config.profile_steps, trace)))
            if self.needs_scorers:
                self.fit_scorers(metrics, watchdog)
            while self.state.step < self.num_steps and not self.is_stopped:
                watchdog.beat(self.state.step + 1)
                profiler.begin(self.state.step + 1)
                row = self.train_step()
                profiler.end(self.state.step)
                if row is None:
                    self.is_stopped = True
                    break
                if metrics is not None:
                    self._write(self.folder.metrics, partial(metrics.log, row))
                if self.state.step % self.train.save_every == 0:
                    watchdog.beat(self.state.step)
                    self.save(metrics)
            watchdog.beat(self.state.step)
            if self.saved_step != self.state.step and not self.needs_scorers:
                self.save(metrics)
            raise_together(self.saver.wait() or self.failure, self.ranks)
        if self.ranks.is_main:
            from pipeline.metrics.plots import write_training_report  # matplotlib takes 0.5 s: not for the other ranks

            scorers = self.folder.root / SCORER_FACTS
            configuration, page = (self.folder.root / "config.yaml").read_text(), self.folder.root / "report.html"
            self._write(page, lambda: write_training_report(self.folder.metrics, scorers, configuration, page))
        raise_together(self.failure, self.ranks)

    @property
    def needs_scorers(self) -> bool:
        """Whether what chooses retained tokens is still to be fitted."""
        return self.config.window.has_scorer and self.saved_step is None

    def fit_scorers(self, metrics: MetricsLogger | None, watchdog: StepWatchdog) -> None:
        """Fits what chooses retained tokens and saves it as the state before the first step, unless asked to stop."""
        describe, self.stop.describe = self.stop.describe, describe_stop_of_fit
        beat = partial(watchdog.beat, self.state.step)
        facts = fit_run_scorers(self.engine, self.stream, self.config, self.ranks, self.stop, beat, self.teacher)
        self.stop.describe = describe
        if facts is None:
            self.is_stopped = True
            return
        if metrics is not None:
            print(facts.describe(), file=sys.stderr, flush=True)
            self._write(self.folder.root / SCORER_FACTS, partial(write_facts, self.folder.root, facts))
            self._write(self.folder.metrics, partial(metrics.log, facts.row()))
        watchdog.beat(self.state.step)
        self.save(metrics)

    def describe_stop(self) -> str:
        """Where a run is that ends before its last step."""
        if self.saved_step is None:
            return f"stopped before the scorers were fitted; the same command begins again (exit code {EXIT_STOPPED})"
        return (
            f"stopped: {self.folder.checkpoint(self.state.step)} has the state after step {self.state.step} of "
            f"{self.train.max_steps}; the same command goes on from there (exit code {EXIT_STOPPED})"
        )

    @property
    def loss_key(self) -> str:
        return f"loss/{self.train.loss}"

    def train_step(self) -> dict[str, Any] | None:
        """One step; its row of metrics.jsonl, or None when a rank was asked to stop."""
        self.meter.begin()
        read, shares = StepBatches([], self.state.consumed_samples), None
        try:
            read = self.batches.next_step()
        except DataError as found:
            self.failure = found
        self.meter.data_read()
        if self.claim is not None:
            self.failure = self.failure or self.claim.error()
        totals, stop = exchange_totals(
            read.micro_batches, self.failure or self.saver.error(), bool(self.stop), self.ranks
        )
        if stop:
            return None
        self.progress.begin()
        rate = learning_rate(self.state.step, self.num_steps, 1.0, self.train.warmup_ratio)
        row = {"step": self.state.step + 1}
        if totals.num_positions > 0:
            set_learning_rate(self.engine, rate)
            try:
                result = run_step(
                    self.engine,
                    read.micro_batches,
                    totals,
                    self.train.loss_normalisation,
                    self.ranks,
                    measure=partial(self.meter.measure, read.micro_batches),
                    is_stopped=self.progress.between,
                )
            except NonFiniteError as found:
                if self.saved_step != self.state.step:
                    self.save(None)
                    raise_together(self.saver.wait(), self.ranks)
                number = self.state.step + 1
                raise report_failed_step(found, number, read.micro_batches, self.folder, self.ranks) from found
            if result is None:
                return None
            row |= {
                self.loss_key: result.loss,
                "optim/grad_norm": result.grad_norm,
                "optim/lr": rate * self.train.learning_rate,
            }
            row[peak_memory_gib(self.ranks.device)[0]] = result.peak_memory_gib
            shares = result.measured
        self.state = replace(
            self.state,
            step=self.state.step + 1,
            consumed_samples=read.position,
            skipped_steps=self.state.skipped_steps + (totals.num_positions == 0),
        )
        self.progress.end(row.get(self.loss_key), () if shares is None else shares[:, 0].tolist())
        return row | self._counts(totals) | self.meter.row(totals.num_tokens, shares)

    def _counts(self, totals: StepTotals) -> dict[str, Any]:
        counts = {
            "data/consumed_samples": self.state.consumed_samples,
            "train/skipped_steps": self.state.skipped_steps,
        }
        if self.config.teacher_cache is not None:
            counts["teacher/cached_samples"] = totals.num_cached_samples
        return totals.row() | counts

    def save(self, metrics: MetricsLogger | None) -> None:
        """Exports the adapter and writes a checkpoint of the current state, or begins to.

        Raises:
            UserError: on every rank, when that or the save before it failed.
        """
        state, info = self.state, describe_adapter(self.config, self.base_fingerprint, self.state)
        weights, moments = gather_weights(self.engine), gather_moments(self.engine)
        if metrics is not None:
            self._write(self.folder.metrics, metrics.sync)

        def write() -> None:
            if self.claim is not None:
                self.claim.check()
            save_adapter(self.folder.adapter, weights, info)
            save_checkpoint(self.folder, state, weights, moments, self.train.keep_checkpoints)

        if self.ranks.is_main:
            self.saver.save(write, f"the checkpoint of step {state.step}")
        raise_together(self.saver.error() or self.failure, self.ranks)
        self.saved_step = state.step

    def _open_metrics(self, stack: contextlib.ExitStack) -> MetricsLogger | None:
        try:
            return stack.enter_context(MetricsLogger(self.folder.metrics, self.state.step, self.train.wandb))
        except UserError as error:
            self.failure = error
            return None

    def _write(self, path: Path, write: Callable[[], None]) -> None:
        try:
            write()
        except OSError as error:
            self.failure = cannot_write(str(path), error)
