"""Log-probabilities of what follows a context, without the logits of the context."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import Cache, PreTrainedModel


@dataclass(frozen=True)
class ContinuationScores:
    """What a model says about the last tokens of an input and about the one after them.

    `log_probs` [n - 1] in nats and `greedy` bool [n - 1]: of the input's last n - 1 tokens, and whether each was the
    likeliest. `next_log_probs` [V]: of the token after the input. Float32, or float64 of a float64 model.
    """

    log_probs: Tensor
    greedy: Tensor
    next_log_probs: Tensor

    def answer(self, continuation: Sequence[int]) -> tuple[float, bool]:
        """Log-probability of a continuation of up to n tokens, all but its last at the input's end, and whether greedy
        decoding gives it."""
        first, last = len(self.log_probs) - (len(continuation) - 1), continuation[-1]
        log_prob = self.log_probs[first:].sum() + self.next_log_probs[last]
        greedy = bool(self.greedy[first:].all()) and int(self.next_log_probs.argmax()) == last
        return float(log_prob), greedy


@torch.no_grad()
def score_continuation(
    model: PreTrainedModel, input_ids: Tensor, num_scored: int, cache: Cache, chunk_size: int
) -> ContinuationScores:
    """Reads what the cache has not seen.

    Args:
        model: any CausalLM of transformers.
        input_ids: int64 [1, T], the cache's tokens included.
        num_scored: n, positions at the end whose predictions count.
        cache: has seen T - n tokens at most.
        chunk_size: positions that are read at a time, and whose logits exist at one time.
    """
    length, log_probs, greedy = input_ids.shape[1], [], []
    for start in range(cache.get_seq_length(), length, chunk_size):
        end = min(start + chunk_size, length)
        num_kept = min(end - start, end - (length - num_scored))
        output = model(
            input_ids=input_ids[:, start:end], past_key_values=cache, use_cache=True, logits_to_keep=num_kept
        )
        logits = output.logits[0]
        of_part = logits.log_softmax(-1, dtype=torch.promote_types(logits.dtype, torch.float32))
        following = input_ids[0, end - num_kept + 1 : end + 1]
        known = of_part[: len(following)]
        log_probs.append(known.gather(-1, following[:, None])[:, 0])
        greedy.append(known.argmax(-1) == following)
    return ContinuationScores(torch.cat(log_probs), torch.cat(greedy), of_part[-1])
