"""A model that reads under one variant of its attention: with its memory, without, in full, or a baseline of its size.

full                 every token
full_yarn            every token, with YaRN's frequencies (arXiv 2309.00071) for contexts longer than the base's
window               sinks + window
memory_off           sinks + window + AHN whose writes are disabled
compressive_max      sinks + window + evicted tokens, pooled by four (arXiv 1911.05507): the newest of them, in as
compressive_mean     many bytes as the AHN's state
ahn                  sinks + window + AHN
wider64              sinks + a window of 64 tokens more (as many as `retained64` keeps)
retained64           sinks + window + 64 evicted tokens a key-value head, chosen by the model's scorer
retained64_ahn       the same + AHN, which compresses the others
random64             sinks + window + 64 evicted tokens, drawn by the seed
received64           sinks + window + the 64 that received most attention in the window (H2O, arXiv 2306.14048)
oracle64             sinks + window + the 64 that later queries will read most: an upper bound that sees the future
"""

import copy
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from pipeline.attention.window import WindowSpec
from pipeline.config import Variant, parse_variant
from pipeline.errors import UserError
from pipeline.evaluation.continuations import ContinuationScores, score_continuation
from pipeline.evaluation.oracle import later_mass_scores
from pipeline.evaluation.shared_prefix import read
from pipeline.evaluation.variant_caches import make_cache
from pipeline.evaluation.variant_windows import variant_window
from pipeline.model.cache import HippocampusCache


class Reader:
    """One model under one variant. Reading in parts of `prefill_chunk` tokens, memory is that of the cache.

    Args:
        model: an AHN model in eval mode; its memories are used by `ahn`, `memory_off` and `retained*` only.
        variant: see the module's docstring.
        window: sinks and window of all variants, but of full attention.
        prefill_chunk: tokens that are read at a time.
        yarn_factor: of `full_yarn`; how many times the base's max_position_embeddings.
        decision_interval: of variants that retain tokens.
        seed: of `random*`.

    Attributes:
        kept: what the variant's attention keeps as it is.
        has_cell: whether the model's cells compress what attention no longer sees.

    Raises:
        UserError: `full_yarn` of a base whose RoPE is not plain.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        variant: Variant,
        window: WindowSpec,
        prefill_chunk: int,
        yarn_factor: float,
        decision_interval: int = 1,
        seed: int = 0,
    ) -> None:
        self.model, self.variant, self.window, self.prefill_chunk = model, variant, window, prefill_chunk
        self.yarn_factor, self._seed, self._spec = yarn_factor, seed, parse_variant(variant)
        self.kept = variant_window(self._spec, window, decision_interval)
        self.has_cell = self._spec.has_cell
        if variant == "full_yarn":
            self.check_yarn(model.config)

    def new_cache(self) -> HippocampusCache:
        """An empty cache of the variant, which is not `oracle`; it takes snapshots and restores them."""
        return make_cache(self.model, self._spec, self.kept, self._seed)

    def _cache_for(self, ids: Tensor) -> HippocampusCache:
        """An empty cache for a text [1, T], of any variant."""
        if self._spec.kind != "oracle":
            return self.new_cache()
        scores = later_mass_scores(self.model, ids[0], self.window)
        return make_cache(self.model, self._spec, self.kept, self._seed, scores)

    def read(self, tokens: Sequence[int] | Tensor, cache: HippocampusCache) -> None:
        """Reads tokens [T] into the cache; no logit is computed."""
        with self._rotation():
            read(self.model, self._ids(tokens), cache, self.prefill_chunk)

    @torch.no_grad()
    def hidden_states(self, tokens: Sequence[int] | Tensor, positions: Tensor) -> Tensor:
        """Final normed hidden states [M, hidden] of a text [T] read from its beginning, at `positions` [M], sorted."""
        ids, found = self._ids(tokens), []
        cache = self._cache_for(ids)
        with self._rotation():
            for start in range(0, ids.shape[1], self.prefill_chunk):
                part = ids[:, start : start + self.prefill_chunk]
                output = self.model.get_decoder()(input_ids=part, past_key_values=cache, use_cache=True)
                inside = positions[(positions >= start) & (positions < start + part.shape[1])] - start
                found.append(output.last_hidden_state[0, inside.to(ids.device)])
        return torch.cat(found)

    def score(self, tokens: Sequence[int] | Tensor, num_scored: int, cache: HippocampusCache) -> ContinuationScores:
        """Log-probabilities of the last `num_scored` - 1 of `tokens` and of what follows; tokens [T] include those that
        the cache has seen, which are at most T - num_scored. The cache goes on."""
        with self._rotation():
            return score_continuation(self.model, self._ids(tokens), num_scored, cache, self.prefill_chunk)

    @torch.no_grad()
    def generate(
        self, tokens: Sequence[int], cache: HippocampusCache, max_new_tokens: int, stop_tokens: Collection[int] = ()
    ) -> list[int]:
        """Reads new tokens [T >= 1] on from the cache and continues greedily, until the end of the text, one of
        `stop_tokens` (neither is returned) or `max_new_tokens`. The cache goes on."""
        stops, new = {*self._end_tokens, *stop_tokens}, []
        self.read(tokens[:-1], cache)
        last = tokens[-1]
        with self._rotation():
            while len(new) < max_new_tokens:
                output = self.model(input_ids=self._ids([last]), past_key_values=cache, use_cache=True)
                last = int(output.logits[0, -1].argmax())
                if last in stops:
                    break
                new.append(last)
        return new

    @property
    def _end_tokens(self) -> set[int]:
        end = self.model.generation_config.eos_token_id
        return set(end) if isinstance(end, list) else set() if end is None else {end}

    def _ids(self, tokens: Sequence[int] | Tensor) -> Tensor:
        return torch.as_tensor(tokens, dtype=torch.int64)[None].to(self.model.device)

    @staticmethod
    def check_yarn(config: PretrainedConfig) -> None:
        """
        Raises:
            UserError: the base's RoPE is not the plain one that YaRN's frequencies take the place of.
        """
        rope = getattr(config, "rope_parameters", None) or {}
        if rope.get("rope_type") not in ("default", "yarn"):
            found = rope.get("rope_type") or "one for each kind of layer"
            raise UserError(f"--variants full_yarn: the base's RoPE is {found}, which YaRN would replace; leave it out")

    @cached_property
    def _yarn(self) -> nn.Module:
        """The base's rotary embedding with YaRN's frequencies."""
        config, rotary = copy.deepcopy(self.model.config), self.model.get_decoder().rotary_emb
        config.rope_parameters = {
            **config.rope_parameters,
            "rope_type": "yarn",
            "factor": self.yarn_factor,
            "original_max_position_embeddings": config.max_position_embeddings,
        }
        return type(rotary)(config=config).to(self.model.device)

    @contextmanager
    def _rotation(self) -> Iterator[None]:
        if self.variant != "full_yarn":
            yield
            return
        decoder = self.model.get_decoder()
        before = decoder.rotary_emb
        decoder.rotary_emb = self._yarn
        try:
            yield
        finally:
            decoder.rotary_emb = before
