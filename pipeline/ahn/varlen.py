"""Independent sequences of different lengths, concatenated along time, for the torch forms of the cells."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

BatchedRule = Callable[..., tuple[Tensor, Tensor]]
MAX_PADDING = 1.25


def over_sequences(
    rule: BatchedRule, inputs: tuple[Tensor, ...], cu_seqlens: Tensor, initial_state: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Runs a recurrent `rule` on N independent sequences.

    Sequences of about the same length go as one batch, padded at the end with zeros: a padded token has zero gates,
    so it writes nothing and does not decay the state. Others go one by one, so that the cost stays that of the
    tokens there are.

    Args:
        rule: takes *inputs [N, T, ...] and `initial_state`; returns outputs and final states.
        inputs: tensors [1, total, ...].
        cu_seqlens: int [N + 1], rising bounds along `total`.
        initial_state: [N, ...] or None.

    Returns:
        Outputs [1, total, ...] and final states [N, ...].

    Raises:
        ValueError: the bounds do not fit the inputs, or a sequence is empty.
    """
    lengths = cu_seqlens.diff().tolist()
    if inputs[0].shape[0] != 1 or sum(lengths) != inputs[0].shape[1]:
        raise ValueError(f"cu_seqlens needs inputs [1, {sum(lengths)}, ...], found {list(inputs[0].shape)}")
    if min(lengths) < 1:
        raise ValueError(f"cu_seqlens must rise: a sequence has {min(lengths)} tokens")
    pieces = [x[0].split(lengths) for x in inputs]
    if max(lengths) * len(lengths) <= MAX_PADDING * sum(lengths):
        batch = (pad_sequence(x, batch_first=True) for x in pieces)
        output, state = rule(*batch, initial_state=initial_state)
        return torch.cat([output[i, :length] for i, length in enumerate(lengths)])[None], state
    states = [None] * len(lengths) if initial_state is None else initial_state.split(1)
    results = [rule(*(x[None] for x in own), initial_state=state) for *own, state in zip(*pieces, states, strict=True)]
    outputs, finals = zip(*results, strict=True)
    return torch.cat(outputs, 1), torch.cat(finals)
