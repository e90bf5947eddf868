"""The gated delta rule in chunks, in plain torch: WY form of arXiv 2412.06464, section 3.3.

Plain autograd without in-place writes into slices, so that the backward pass is linear in length too.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def gated_delta_rule_chunks(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor, chunk_size: int
) -> tuple[Tensor, Tensor]:
    """Outputs [B, T, Hq, D] and final state [B, Hq, D, D]; arguments as `chunk_gated_delta_rule`, T >= 1.

    Shapes inside: N chunks, C tokens a chunk, G key heads, R query heads a key head.
    """
    batch, length, num_heads, dim = q.shape
    num_groups, chunk = k.shape[2], min(chunk_size, length)

    def by_chunk(x: Tensor, *heads: int) -> Tensor:  # [B, T, heads.., *] -> [N, B, heads.., C, *]
        padding = -length % chunk
        tail = x.shape[3:]
        x = F.pad(x, (0, 0) * (x.ndim - 2) + (0, padding)) if padding else x
        x = x.reshape(batch, -1, chunk, *heads, *tail).movedim(1, 0)
        return x.movedim(2, 2 + len(heads))

    num_repeats = num_heads // num_groups
    q = by_chunk(q, num_groups, num_repeats)  # [N, B, G, R, C, D]
    k, v = by_chunk(k, num_groups), by_chunk(v, num_groups)  # [N, B, G, C, D]
    g, beta = by_chunk(g, num_groups, num_repeats), by_chunk(beta, num_groups, num_repeats)  # [N, B, G, R, C]

    log_decay = g.cumsum(-1)
    later = torch.ones(chunk, chunk, dtype=torch.bool, device=q.device).triu(1)
    decay = (log_decay[..., :, None] - log_decay[..., None, :]).masked_fill(later, float("-inf")).exp()
    key_products = (k @ k.mT)[:, :, :, None] * decay * beta[..., None]
    # u - w h is what the chunk writes, given the state h at its start: (I + strictly lower) [u, w] = [b v, b a k]
    writes = torch.cat([beta[..., None] * v[:, :, :, None], (beta * log_decay.exp())[..., None] * k[:, :, :, None]], -1)
    u, w = torch.linalg.solve_triangular(key_products, writes, upper=False, unitriangular=True).chunk(2, -1)
    last = log_decay[..., -1:]
    k_out = k[:, :, :, None] * (last - log_decay).exp()[..., None]

    flat = [x.flatten(1, 3) for x in (u, w, k_out.mT, last.exp()[..., None])]  # [N, B * Hq, ..]
    h = state.flatten(0, 1)
    states, written = [], []
    for u_n, w_n, k_n, decay_n in zip(*(x.unbind(0) for x in flat), strict=True):
        states.append(h)
        written.append(torch.baddbmm(u_n, w_n, h, alpha=-1))
        h = torch.baddbmm(h * decay_n, k_n, written[-1])
    h_in, new = torch.stack(states), torch.stack(written)

    scale = dim**-0.5
    scores = (q.flatten(3, 4) @ k.mT).unflatten(3, (num_repeats, chunk)) * decay * scale
    from_state = (q * (log_decay.exp() * scale)[..., None]).flatten(1, 3) @ h_in
    output = from_state + scores.flatten(1, 3) @ new  # [N, B * Hq, C, D]
    output = output.unflatten(1, (batch, num_heads)).permute(1, 0, 3, 2, 4).flatten(1, 2)[:, :length]
    return output, h.unflatten(0, (batch, num_heads))
