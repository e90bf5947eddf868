"""The DeepSpeed engine: optimizer groups, and weights and Adam moments by name at every ZeRO stage.

Everything that depends on the stage is here. Weights are put into the model before the engine is built (it copies
them bit for bit); moments are set afterwards.
"""

from typing import Any

import deepspeed
import torch
from deepspeed.runtime.engine import DeepSpeedEngine
from deepspeed.utils import (
    safe_get_full_fp32_param,
    safe_get_full_optimizer_state,
    safe_set_full_optimizer_state,
    safe_set_local_optimizer_state,
)
from torch import Tensor, nn

from pipeline.config import TrainConfig
from pipeline.distributed.deepspeed_check import deepspeed_settings
from pipeline.training.distillation import Distillation

MOMENTS = ("exp_avg", "exp_avg_sq")
OUTPUT_MODULES = frozenset({"o_proj", "o_norm", "norm"})
"""Of a cell; what its other parameters make are gates."""


def build_engine(module: Distillation, train: TrainConfig, deepspeed_config: dict[str, Any]) -> DeepSpeedEngine:
    """Wraps `module` for training, with AdamW over its trainable parameters. Collective.

    Raises:
        UserError: DeepSpeed cannot do together what its JSON asks for.
    """
    optimizer = torch.optim.AdamW(parameter_groups(module.model, train), lr=train.learning_rate, betas=train.adam_betas)
    with deepspeed_settings():
        engine, *_ = deepspeed.initialize(model=module, optimizer=optimizer, config=deepspeed_config)
    _create_moments(engine)
    return engine


def parameter_groups(model: nn.Module, train: TrainConfig) -> list[dict[str, Any]]:
    """AdamW groups of the trainable parameters, each with its peak learning rate as `peak`.

    Matrices decay; A_log, dt_bias, biases and norm weights do not. Output matrices and norms have the common rate and
    decay, what makes gates has its own.
    """
    groups: dict[tuple[bool, float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        rate, decay, is_vector = train.learning_rate, train.weight_decay, parameter.ndim <= 1
        if not OUTPUT_MODULES.intersection(name.split(".")):
            rate = rate if train.gate_learning_rate is None else train.gate_learning_rate
            decay = decay if train.gate_weight_decay is None else train.gate_weight_decay
        groups.setdefault((is_vector, rate, 0.0 if is_vector else decay), []).append(parameter)
    return [{"params": groups[key], "peak": key[1], "weight_decay": key[2]} for key in sorted(groups)]


def trainable_parameters(engine: DeepSpeedEngine) -> dict[str, nn.Parameter]:
    """The AHN parameters under the model's own names."""
    return {name: p for name, p in engine.module.model.named_parameters() if p.requires_grad}


def set_learning_rate(engine: DeepSpeedEngine, share: float) -> None:
    """Sets the rate of the next optimizer step, in each group to a share of its peak."""
    for group in engine.optimizer.param_groups:
        group["lr"] = share * group["peak"]


def take_step(engine: DeepSpeedEngine) -> float:
    """Clips, steps the optimizer and clears gradients; call after the last backward of a step. Collective.

    Returns:
        The global gradient norm before clipping. When it is not finite, nothing was stepped.
    """
    if engine.zero_optimization_stage() > 0:
        engine.step()
        return float(engine.get_global_grad_norm())
    gradients = [p.grad for p in trainable_parameters(engine).values() if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    if torch.isfinite(norm):
        engine.step()
    return float(norm)


def gather_weights(engine: DeepSpeedEngine) -> dict[str, Tensor]:
    """Whole float32 AHN weights and scorers by name, on CPU. Collective."""
    scorers = {n: x for n, x in engine.module.model.named_buffers() if ".ahn." in n}
    if engine.zero_optimization_stage() == 0:
        return {n: x.detach().cpu().clone() for n, x in (trainable_parameters(engine) | scorers).items()}
    weights = {n: safe_get_full_fp32_param(p).cpu().clone() for n, p in trainable_parameters(engine).items()}
    return weights | {n: x.cpu().clone() for n, x in scorers.items()}


def gather_moments(engine: DeepSpeedEngine) -> dict[str, Tensor]:
    """Whole Adam moments as {"exp_avg/NAME": tensor, ...}, on CPU. Collective."""
    moments = {}
    for name, parameter in trainable_parameters(engine).items():
        for key in MOMENTS:
            if engine.zero_optimization_stage() == 0:
                full = engine.optimizer.state[parameter][key]
            else:
                full = safe_get_full_optimizer_state(parameter, key)
            moments[f"{key}/{name}"] = full.cpu().clone().reshape(parameter_shape(parameter))
    return moments


def parameter_shape(parameter: nn.Parameter) -> torch.Size:
    """The whole shape, also where ZeRO-3 partitions the parameter."""
    return getattr(parameter, "ds_shape", parameter.shape)


def restore_moments(engine: DeepSpeedEngine, moments: dict[str, Tensor], num_updates: int) -> None:
    """Puts back what `gather_moments` returned, and Adam's own count of steps. Collective."""
    stage = engine.zero_optimization_stage()
    for state in _inner_optimizer(engine).state.values():
        state["step"].fill_(num_updates)
    for name, parameter in trainable_parameters(engine).items():
        for key in MOMENTS:
            value = moments[f"{key}/{name}"].to(engine.device)
            if stage == 0:
                engine.optimizer.state[parameter][key].copy_(value)
            elif stage < 3:
                safe_set_full_optimizer_state(parameter, value, key)
            else:
                safe_set_local_optimizer_state(parameter, _local_part(parameter, value, engine), key)


def _local_part(parameter: nn.Parameter, value: Tensor, engine: DeepSpeedEngine) -> Tensor:
    """This rank's ZeRO-3 partition of `value`: equal parts of the flat tensor, zero-padded at its end.

    (safe_set_full_optimizer_state fails where the number of elements does not divide by the ranks.)
    """
    size, world_size = parameter.ds_tensor.numel(), engine.dp_world_size
    padded = torch.nn.functional.pad(value.flatten(), (0, size * world_size - value.numel()))
    return padded.narrow(0, size * torch.distributed.get_rank(), size)


def _inner_optimizer(engine: DeepSpeedEngine) -> torch.optim.Optimizer:
    return engine.optimizer if engine.zero_optimization_stage() == 0 else engine.optimizer.optimizer


def _create_moments(engine: DeepSpeedEngine) -> None:
    """Creates zero moments at step 0, exactly as AdamW would at its first step.

    They must exist to be restored; and DeepSpeed's own linking of moments to parameters (stages 1 and 2) happens
    after the first group's first step, when later groups have none yet, so that those could never be read.
    """
    stage, inner = engine.zero_optimization_stage(), _inner_optimizer(engine)
    if stage == 3:
        flat = engine.optimizer.fp32_partitioned_groups_flat
    else:
        flat = [p for group in inner.param_groups for p in group["params"]]
    for parameter in flat:
        inner.state[parameter] = {
            "step": torch.tensor(0.0),
            **{key: torch.zeros_like(parameter, memory_format=torch.preserve_format) for key in MOMENTS},
        }
    if stage in (1, 2):
        engine.optimizer._lazy_init_hp_params_optimizer_state()
