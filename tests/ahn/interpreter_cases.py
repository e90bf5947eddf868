"""Runs fla's real Triton kernels on CPU tensors, under Triton's interpreter, against our torch forms.

    TRITON_INTERPRET=1 python -m tests.ahn.interpreter_cases RESULT.json

A process of its own: the interpreter is chosen when triton is imported. Two things are patched before fla is: the
autotuner tries one configuration only, and kernels get a `range` that takes the interpreter's scalar tensors.
bfloat16 is silently wrong in the interpreter, so float32 and (for the delta rule, which refuses float32) float16.
"""

import builtins
import json
import sys
from typing import Any

import torch
from triton.runtime.autotuner import Autotuner
from triton.runtime.interpreter import GridExecutor, _implicit_cvt


def patch_triton() -> None:
    plain_init, plain_call = Autotuner.__init__, GridExecutor.__call__

    def init(self: Autotuner, fn: Any, arg_names: Any, configs: list, *args: Any, **kwargs: Any) -> None:
        plain_init(self, fn, arg_names, configs[:1], *args, **kwargs)

    def as_int(x: Any) -> int:
        return int(x.handle.data.item()) if hasattr(x, "handle") else int(x)

    def call(self: GridExecutor, *args: Any, **kwargs: Any) -> Any:
        self.fn.__globals__["range"] = lambda *bounds: map(_implicit_cvt, builtins.range(*map(as_int, bounds)))
        return plain_call(self, *args, **kwargs)

    Autotuner.__init__, GridExecutor.__call__ = init, call


def relative(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return ((actual - expected).norm() / expected.norm().clamp(min=1e-30)).item()


def compare(
    function: Any, inputs: list[torch.Tensor], state: torch.Tensor | None, gradients: bool, **options: Any
) -> float:
    """Largest relative difference, fla against torch, over output, final state and, if asked for, all gradients."""
    from pipeline.ahn.backend import use_backend

    results = []
    for backend in ("torch", "fla"):
        leaves = [x.detach().clone().requires_grad_() for x in inputs]
        with use_backend(backend), torch.set_grad_enabled(gradients):
            output, final = function(*leaves, initial_state=state, output_final_state=True, **options)
        torch.manual_seed(1)
        found = [output, final]
        if gradients:
            loss = (output * torch.randn(output.shape)).sum() + (final * torch.randn(final.shape)).sum()
            found += torch.autograd.grad(loss, leaves)
        results.append([x.float() for x in found])
    return max(relative(a, e) for e, a in zip(*results, strict=True))


def main() -> None:
    patch_triton()
    from pipeline.ahn.base import l2_normalise
    from pipeline.ahn.delta_net import chunk_delta_rule
    from pipeline.ahn.gated_delta_net import chunk_gated_delta_rule
    from pipeline.ahn.mamba2 import chunk_ssd

    torch.set_num_threads(1)
    cells = {"gated_delta_net": chunk_gated_delta_rule, "delta_net": chunk_delta_rule, "mamba2": chunk_ssd}
    cases = {
        "whole": (100, None, 1),
        "packed": (130, [0, 50, 130], 2),
        "decode": (1, None, 1),
        "one": (1, None, 1),
        "wide": (70, None, 1),
    }
    errors = {}
    for cell, function in cells.items():
        for case, (length, bounds, num_states) in cases.items():
            torch.manual_seed(length)
            q, k = (l2_normalise(torch.randn(1, length, heads, 64)) for heads in (2, 1))
            width = 128 if case == "wide" else 64  # of values; [v, 0] as MemoryCell.passage has it
            v = torch.randn(1, length, 1, width)
            gates = [-torch.rand(1, length, 2) * 0.3, torch.rand(1, length, 2)][cell == "delta_net" :]
            state = torch.randn(num_states, 2, 64, width) * 0.3
            options = {} if bounds is None else {"cu_seqlens": torch.tensor(bounds)}
            errors[f"{cell}/{case}"] = compare(function, [q, k, v, *gates], state, case != "decode", **options)
    with open(sys.argv[1], "w") as file:
        json.dump(errors, file)


if __name__ == "__main__":
    main()
