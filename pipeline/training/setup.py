"""From a checked plan to an engine that stands where the run's newest checkpoint stands."""

import torch
from deepspeed.runtime.engine import DeepSpeedEngine

from pipeline.attention.window import WindowSpec
from pipeline.distributed.groups import Ranks, raise_together
from pipeline.errors import UserError
from pipeline.model.adapter import base_fingerprint
from pipeline.model.loading import load_base
from pipeline.teacher.fingerprint import teacher_fingerprint
from pipeline.training.cached_teacher import check_teacher
from pipeline.training.checkpoint import load_state, load_tensors
from pipeline.training.distillation import Distillation
from pipeline.training.engine import build_engine, restore_moments
from pipeline.training.preflight import Plan
from pipeline.training.run_folder import RunFolder, TrainState, check_base_fingerprint, claim_run_folder


def claim_output(plan: Plan, ranks: Ranks) -> str:
    """Marks --output as this run's; returns the base's fingerprint. Collective.

    Raises:
        UserError: the base is not the one that the run was started with, or not the teacher of the cache.
    """
    error, fingerprint = None, ""
    try:
        fingerprint = base_fingerprint(plan.config.model)
        check_base_fingerprint(plan.config, fingerprint)
        if plan.teacher is not None:
            check_teacher(plan.config, plan.teacher, teacher_fingerprint(plan.config.model))
    except UserError as found:
        error = found
    raise_together(error, ranks)
    if ranks.is_main:
        claim_run_folder(plan.config, plan.stream.dataset.fingerprint, fingerprint)
    torch.distributed.barrier()
    return fingerprint


def build_training(plan: Plan, ranks: Ranks) -> tuple[DeepSpeedEngine, TrainState]:
    """Loads the base, adds the memories (new or from the newest checkpoint) and builds the engine. Collective.

    Raises:
        UserError: the model or the checkpoint cannot be read.
    """
    config, train = plan.config, plan.config.train
    checkpoint = RunFolder(config.output).latest_checkpoint()
    state = load_state(checkpoint)
    model = load_base(
        config.model,
        memory=config.memory,
        window=WindowSpec(config.window.inference_sinks, config.window.inference_window),
        dtype=getattr(torch, train.base_dtype),
        seed=train.seed,
    ).to(ranks.device)
    model.train()  # activation checkpointing is off in eval mode
    if train.activation_checkpointing:
        model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    weights, moments = load_tensors(checkpoint) if checkpoint else ({}, {})
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, value in weights.items():
            parameters[name].copy_(value)
    module = Distillation(model, train.loss, train.loss_chunk_size, train.topk_tail)
    engine = build_engine(module, train, plan.deepspeed)
    if moments:
        restore_moments(engine, moments, num_updates=state.step - state.skipped_steps)
    return engine, state
