"""Spreads a frozen base over the ranks as ZeRO stage 3 does, module by module, while its files are read.

transformers maps a base's safetensors into memory, which takes none until a tensor is used. Here rank 0 reads each
tensor once and broadcasts it; every rank keeps its part and forgets the rest before the next one. What is trained is
left to the engine.
"""

from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from torch import nn

from pipeline.distributed.deepspeed_check import deepspeed_settings


def partition_frozen(model: nn.Module, settings: dict[str, Any], device: torch.device) -> None:
    """Partitions the parameters without `requires_grad` over all ranks, in place. Collective.

    Args:
        model: loaded alike on every rank, on the CPU.
        settings: DeepSpeed's, with ZeRO stage 3.
        device: where the parts belong.

    Raises:
        UserError: DeepSpeed does not take the settings.
    """
    reads = dist.get_rank() == 0
    for module in model.modules():
        frozen = [p for p in module.parameters(recurse=False) if not p.requires_grad and not hasattr(p, "ds_id")]
        if not frozen:
            continue
        assert not any(True for _ in module.children()), f"{type(module).__name__} has parameters and children"
        for parameter in frozen:
            # A new tensor on the others too: what is received would be written into their own copy of the file's pages.
            whole = torch.empty_like(parameter, device=device)
            parameter.data = whole.copy_(parameter) if reads else whole
        with deepspeed_settings():
            deepspeed.zero.Init(module=module, config_dict_or_path=settings, dtype=frozen[0].dtype)
