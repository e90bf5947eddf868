"""From a checked plan to an engine that stands where the run's newest checkpoint stands."""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from deepspeed.runtime.engine import DeepSpeedEngine
from torch import Tensor
from transformers import PreTrainedModel

from pipeline.attention.window import WindowSpec
from pipeline.config import TrainRunConfig
from pipeline.distributed.groups import Ranks, gather_objects, raise_together
from pipeline.errors import UserError
from pipeline.folder_claim import FolderClaim, claimed_folder
from pipeline.model.adapter import adapter_state, base_fingerprint
from pipeline.model.base_check import check_family
from pipeline.model.loading import load_base, load_config
from pipeline.model.partitioning import partition_frozen
from pipeline.model.sequence_shard import SequenceLayout
from pipeline.model.supported import sliding_windows
from pipeline.teacher.fingerprint import teacher_fingerprint
from pipeline.training.cached_teacher import check_teacher
from pipeline.training.checkpoint import find_checkpoint, load_state, load_tensors
from pipeline.training.distillation import Distillation
from pipeline.training.engine import build_engine, restore_moments
from pipeline.training.preflight import Plan
from pipeline.training.run_folder import (
    RunFolder,
    TrainState,
    check_base_fingerprint,
    check_run_folder,
    describe_run,
)
from pipeline.training.saver import cannot_write


@contextlib.contextmanager
def claimed_output(plan: Plan, ranks: Ranks) -> Iterator[FolderClaim | None]:
    """While the block runs, no other run writes to --output. The main rank has the claim for all. Collective.

    Raises:
        UserError: another run is writing there, or it holds another run.
    """
    with contextlib.ExitStack() as stack:
        error, claim = None, None
        if ranks.is_main:
            try:
                claim = stack.enter_context(claimed_folder(plan.config.output))
                check_run_folder(plan.config, plan.stream.dataset.fingerprint)  # another may have begun and ended since
            except UserError as found:
                error = found
        raise_together(error, ranks)
        yield claim


def check_base(plan: Plan, ranks: Ranks) -> str:
    """The base's fingerprint. Collective.

    Raises:
        UserError: AHN is not exact on the base, it is not the one that the run was started with, or not the teacher of
            the cache.
    """
    error, fingerprint, teacher = None, "", ""
    try:
        _check_halo(plan.config)
        if plan.config.check_base and ranks.is_main:  # the others find it remembered
            check_family(load_config(plan.config.model))
        fingerprint = base_fingerprint(plan.config.model)
        check_base_fingerprint(plan.config, fingerprint)
        if plan.teacher is not None and ranks.is_main:  # it reads all weights
            teacher = teacher_fingerprint(plan.config.model)
    except UserError as found:
        error = found
    raise_together(error, ranks)
    if plan.teacher is not None:
        teacher = gather_objects(teacher, ranks)[0]
        try:
            check_teacher(plan.config, plan.teacher, teacher)
        except UserError as found:
            error = found
        raise_together(error, ranks)
    return fingerprint


def begin_run(plan: Plan, base_fingerprint: str, ranks: Ranks) -> None:
    """Marks --output as this run's, on the main rank, once nothing of it can be refused any more. Collective.

    Raises:
        UserError: it cannot be written.
    """
    error = None
    if ranks.is_main:
        try:
            describe_run(plan.config, plan.stream.dataset.fingerprint, base_fingerprint)
        except OSError as found:
            error = cannot_write(f"--output {plan.config.output}", found)
    raise_together(error, ranks)


def find_start(plan: Plan, ranks: Ranks) -> Path | None:
    """The checkpoint to go on from, the same on all ranks: the first one chooses. Collective.

    Raises:
        UserError: there are checkpoints, and none is whole.
    """
    error, checkpoint = None, None
    if ranks.is_main:
        try:
            checkpoint, torn = find_checkpoint(RunFolder(plan.config.output))
            if torn:
                print(f"warning: checkpoint {'; '.join(torn)}; going on from {checkpoint.name}", file=sys.stderr)
        except UserError as found:
            error = found
    raise_together(error, ranks)
    return gather_objects(checkpoint, ranks)[0]


def build_training(plan: Plan, ranks: Ranks, checkpoint: Path | None) -> tuple[DeepSpeedEngine, TrainState]:
    """Loads the base, adds the memories (new or from `checkpoint`) and builds the engine. Collective.

    Raises:
        UserError: the model or the checkpoint cannot be read.
    """
    config, train = plan.config, plan.config.train
    state, weights, moments = _load_checkpoint(checkpoint, ranks)
    model = _load_base(config, ranks)
    if plan.deepspeed.get("zero_optimization", {}).get("stage") == 3:
        partition_frozen(model, plan.deepspeed, ranks.device)
    model.to(ranks.device)
    model.train()
    if train.activation_checkpointing:
        model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    tensors = adapter_state(model)
    with torch.no_grad():
        for name, value in weights.items():
            tensors[name].copy_(value)
    layout = SequenceLayout(ranks.sequence, plan.heads) if ranks.sequence.size > 1 else None
    module = Distillation(model, train.loss, train.loss_chunk_size, train.topk_tail, layout, ranks.clock)
    engine = build_engine(module, train, plan.deepspeed)
    if moments:
        restore_moments(engine, moments, num_updates=state.step - state.skipped_steps)
    return engine, state


def _load_base(config: TrainRunConfig, ranks: Ranks) -> PreTrainedModel:
    """Every rank loads for itself; what one refuses ends all."""
    model, error = None, None
    try:
        model = load_base(
            config.model,
            memory=config.memory,
            window=WindowSpec(config.window.inference_sinks, config.window.inference_window),
            has_scorer=config.window.has_scorer,
            dtype=getattr(torch, config.train.base_dtype),
            seed=config.train.seed,
            check=config.check_base and ranks.is_main,  # the others would read more of the files than their part
        )
    except UserError as found:
        error = found
    raise_together(error, ranks)
    return model


def _check_halo(config: TrainRunConfig) -> None:
    """
    Raises:
        UserError: ranks would pass on the memory's window only, where layers have windows of their own.
    """
    is_halo = config.sequence_parallel_size > 1 and config.sequence_parallel_mode == "halo"
    if is_halo and any(sliding_windows(load_config(config.model))):
        raise UserError(
            f"--sequence_parallel_mode halo: --model {config.model} has layers with a sliding window of their own; use "
            f"--sequence_parallel_mode ulysses"
        )


def _load_checkpoint(checkpoint: Path | None, ranks: Ranks) -> tuple[TrainState, dict[str, Tensor], dict[str, Tensor]]:
    """Every rank reads for itself; what one cannot read ends all."""
    state, weights, moments, error = TrainState(), {}, {}, None
    if checkpoint is not None:
        try:
            state, (weights, moments) = load_state(checkpoint), load_tensors(checkpoint)
        except (UserError, OSError) as found:
            error = UserError(f"checkpoint {checkpoint.name} cannot be read: {found}")
    raise_together(error, ranks)
    return state, weights, moments
