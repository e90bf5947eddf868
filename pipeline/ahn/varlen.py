"""Independent sequences of different lengths, concatenated along time, for the torch forms of the cells."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

Rule = Callable[..., tuple[Tensor, Tensor | None]]


def over_sequences(
    rule: Rule,
    inputs: tuple[Tensor, ...],
    cu_seqlens: Tensor,
    initial_state: Tensor | None,
    output_final_state: bool,
) -> tuple[Tensor, Tensor | None]:
    """Runs a recurrent `rule` on N sequences as a batch, padded at the end with zeros.

    A padded token has zero gates: it writes nothing and does not decay the state, so final states are right.

    Args:
        rule: takes *inputs [N, T, ...], `initial_state` and `output_final_state`.
        inputs: tensors [1, total, ...].
        cu_seqlens: int [N + 1], bounds along `total`.
        initial_state: [N, ...] or None.
        output_final_state: also return the states after each sequence's last token.

    Returns:
        Outputs [1, total, ...] and final states [N, ...] or None.
    """
    lengths = cu_seqlens.diff().tolist()
    if inputs[0].shape[0] != 1 or sum(lengths) != inputs[0].shape[1]:
        raise ValueError(f"cu_seqlens needs inputs [1, {sum(lengths)}, ...], found {list(inputs[0].shape)}")
    if len(lengths) == 1:
        batched = inputs
    else:
        batched = tuple(pad_sequence(x[0].split(lengths), batch_first=True) for x in inputs)
    output, state = rule(*batched, initial_state=initial_state, output_final_state=output_final_state)
    output = torch.cat([output[i, :length] for i, length in enumerate(lengths)])[None]
    return output, state
