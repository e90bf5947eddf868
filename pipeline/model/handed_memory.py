"""How a layer's memory gets to the attention function, past whatever moves, offloads or replaces modules on the way.

The memory belongs to the decoder layer, the attention function is called from within the attention module. What is
passed there as a keyword goes through the hooks of others (accelerate, ZeRO, FSDP), which move each tensor and module
that they find: a memory whose weights are offloaded cannot be moved. So it is handed over in a plain object.
"""

import functools
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch import nn

from pipeline.ahn.build import Memory
from pipeline.errors import UserError


class HandedMemory:
    """What one call of an attention module needs of its layer, and whether it arrived: a memory, or the sliding window
    that the base itself gives a layer without one."""

    def __init__(self, memory: Memory | None, sliding_window: int | None) -> None:
        self._memory, self._sliding_window = memory, sliding_window
        self.was_taken = False

    def take(self) -> tuple[Memory | None, int | None]:
        self.was_taken = True
        return self._memory, self._sliding_window


def hand_to_attention(memory: Memory | None, sliding_window: int | None, attention: nn.Module) -> None:
    """From now on each call of `attention` hands `ahn_memory` and `ahn_hidden`, its hidden states, to its attention
    function, and ends in an error if that function did not take the memory."""
    attention.register_forward_pre_hook(functools.partial(_hand_over, memory, sliding_window), with_kwargs=True)
    attention.register_forward_hook(_check_taken, with_kwargs=True)


def _hand_over(
    memory: Memory | None,
    sliding_window: int | None,
    _module: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    hidden_states = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
    return args, {**kwargs, "ahn_memory": HandedMemory(memory, sliding_window), "ahn_hidden": hidden_states}


def _check_taken(attention: nn.Module, _args: tuple[Any, ...], kwargs: dict[str, Any], _output: Any) -> None:
    if not kwargs["ahn_memory"].was_taken:
        raise UserError(
            f"layer {attention.layer_idx}: {type(attention).__name__} did not call AHN's attention function, so the "
            f"layer's memory was left out; undo what replaced its forward or its attention function"
        )


def own_parameters(cell: nn.Module | None) -> AbstractContextManager[None]:
    """Has the parameters that a module holds itself, not its children's, where it computes, if accelerate offloads
    them: for calls of another method than its forward, which accelerate's hooks do not see."""
    if not hasattr(cell, "_hf_hook"):
        return nullcontext()
    from accelerate.utils import align_module_device  # there if there is a hook

    return align_module_device(cell)
