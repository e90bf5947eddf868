"""Our models as lm-eval (EleutherAI's lm-evaluation-harness) knows models: prompts in chunks, documents once."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed as dist
from lm_eval.api.instance import Instance
from lm_eval.api.registry import register_model
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text
from tqdm import tqdm
from transformers import Cache, PreTrainedModel, PreTrainedTokenizerBase

from pipeline.distributed.device import choose_device
from pipeline.distributed.launch import find_rank
from pipeline.errors import UserError
from pipeline.evaluation.continuations import score_continuation
from pipeline.evaluation.lm_eval_shares import SharedLM
from pipeline.evaluation.placement import choose_dtype
from pipeline.evaluation.positions import trained_positions
from pipeline.evaluation.shared_prefix import read_prefixes, to_ids
from pipeline.model.decoder import window_of
from pipeline.model.files import resolve_model
from pipeline.model.loading import load_model, set_window
from pipeline.tokenizer import load_tokenizer

Dtype = Literal["auto", "float32", "bfloat16"]
UNLIMITED = 2**31 - 1
"""lm-eval wants a number."""


@register_model("ahn")
class HippocampusLM(SharedLM):
    """An AHN model, or a base with full attention to compare with, as lm-eval's model.

    Tokenises, stops and applies chat templates as lm-eval's own `hf` does. One request at a time; requests that begin
    with the same text (a document, few-shot examples) read it once.
    """

    def __init__(
        self,
        pretrained: str | PreTrainedModel,
        tokenizer: str | PreTrainedTokenizerBase | None = None,
        *,
        base: str | None = None,
        num_sink_tokens: int | None = None,
        window_size: int | None = None,
        num_retained_tokens: int | None = None,
        dtype: Dtype = "auto",
        device: str | None = None,
        prefill_chunk: int = 2048,
        max_length: int | None = None,
        truncation_side: Literal["middle", "left"] = "middle",
        add_bos_token: bool | None = None,
        trust_remote_code: bool = False,
        batch_size: int | str = 1,
    ) -> None:
        """
        Args:
            pretrained: an adapter, merged or base folder, a published checkpoint, or a model, which stays as it is.
            tokenizer: folder, hub id or tokenizer. Default: that of the base. RULER needs the name of one.
            base: of an adapter. Default: the one that the adapter names.
            num_sink_tokens: first tokens that attention keeps. Default: the model's own.
            window_size: most recent tokens that attention keeps, sinks not counted. Default: the model's own.
            num_retained_tokens: evicted tokens that each key-value head retains. Default: the model's own.
            dtype: of the base. `auto`: bfloat16 on CUDA, float32 on a CPU.
            device: default: the GPU, or the CPU, also where lm-eval's command line says cuda and there is none. Of
                several processes each takes the GPU of its local rank.
            prefill_chunk: prompt tokens read at a time; prompts share what they begin with in multiples of it.
            max_length: tokens of context. Default: with a window, which the base's positions do not bound, none is cut;
                of full attention the positions that it has (`trained_positions`).
            truncation_side: where a longer context loses tokens. `middle`: LongBench's, LV-Eval's and
                InfiniteBench's official way; `left`: as lm-eval's own classes do.
            add_bos_token: default: as the tokenizer does.
            trust_remote_code: run code that comes with the tokenizer.
            batch_size: 1.

        Raises:
            UserError: no such model, or an argument out of range.
        """
        _check_arguments(batch_size, prefill_chunk, truncation_side)
        if isinstance(pretrained, str):
            files = resolve_model(Path(pretrained), base)
            window = files.choose_window(num_sink_tokens, window_size, num_retained_tokens)
            placed = _place(device)
            pretrained = load_model(str(files.folder), dtype=choose_dtype(dtype, placed), base=files.base).to(placed)
            if window is not None:
                set_window(pretrained, window)
            if tokenizer is None or isinstance(tokenizer, str):
                name = tokenizer or files.tokenizer
                tokenizer = load_tokenizer(name, trust_remote_code=bool(trust_remote_code))
        has_memory = getattr(pretrained.config, "ahn", None) is not None
        self.window = window_of(pretrained.config) if has_memory else None
        self.positions = None if has_memory else trained_positions(pretrained.config)
        limit = max_length or (UNLIMITED if has_memory else self.positions)
        super().__init__(
            pretrained, backend="causal", tokenizer=tokenizer, max_length=limit, add_bos_token=add_bos_token
        )
        self.prefill_chunk, self.truncation_side = prefill_chunk, truncation_side

    def get_model_info(self) -> dict[str, Any]:
        """lm-eval's figures, and what ours depend on."""
        counts = self.count_all()
        return super().get_model_info() | {
            "evicted": None if self.window is None else counts.evictions(),
            "window": "full attention" if self.window is None else str(self.window),
            "prefill_chunk": self.prefill_chunk,
            "max_length": "whole prompts" if self.max_length == UNLIMITED else self.max_length,
            "positions": self.positions,
            "truncation_side": self.truncation_side,
            "num_processes": self.world_size,
            "num_requests": dict(counts.requests),
            "num_truncated": dict(counts.truncated),
            "num_beyond_positions": dict(+counts.beyond),
        }

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Log-probability in nats of each continuation after its context, and whether greedy decoding gives it.

        Raises:
            UserError: a continuation leaves no room for a token of context.
        """
        fitted = []
        for request in requests:
            context, continuation = request.args
            if context:
                context_tokens, tokens = self._encode_pair(context, continuation)
            else:
                tokens = self.tok_encode(continuation, add_special_tokens=False)
                own_prefix = tokens[0] == self.prefix_token_id
                context_tokens, tokens = (tokens[:1], tokens[1:]) if own_prefix else ([self.prefix_token_id], tokens)
            room = self.max_length + 1 - len(tokens)  # the last token is predicted, not read
            if room < 1:
                raise UserError(
                    f"--tasks {request.task_name}: an answer of {len(tokens)} tokens does not fit a context of "
                    f"{self.max_length}; give a larger --model_args max_length=N"
                )
            context_tokens = self.fit(context_tokens, room, request)
            self.count_read(request, len(context_tokens) + len(tokens) - 1)
            fitted.append(((context, continuation), context_tokens, tokens))
        self.warn_without_evictions()
        return self._loglikelihood_tokens(fitted, disable_tqdm=disable_tqdm)

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """As lm-eval's: a longer text is scored in windows, nothing of it is left out."""
        for request in requests:
            self.counts.requests[request.task_name] += 1
            self.count_read(request, min(len(self.tok_encode(request.args[0])), self.max_length))
        self.warn_without_evictions()
        return super().loglikelihood_rolling(requests, disable_tqdm=disable_tqdm)

    @torch.no_grad()
    def _loglikelihood_tokens(
        self,
        requests: Sequence[tuple[tuple[str, str] | None, list[int], list[int]]],
        disable_tqdm: bool = False,
        override_bs: int | None = None,
    ) -> list[tuple[float, bool]]:
        """Requests (cache key, context, continuation) that fit. What is read is the same for answers of one token."""
        same_input: dict[bytes, list[int]] = {}
        for i, (_, context, continuation) in enumerate(requests):
            same_input.setdefault(np.array((context + continuation)[:-1], np.int32).tobytes(), []).append(i)
        inputs = [np.frombuffer(tokens, np.int32) for tokens in same_input]
        askers = list(same_input.values())
        num_scored = [max(len(requests[i][2]) for i in group) for group in askers]
        ends = [len(tokens) - n for tokens, n in zip(inputs, num_scored, strict=True)]
        answers: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
        with tqdm(
            total=len(requests), desc="loglikelihood", disable=disable_tqdm or self.rank != 0, delay=5
        ) as progress:
            for which, cache in read_prefixes(self.model, inputs, ends, self.prefill_chunk):
                ids = to_ids(inputs[which], self.model)
                scores = score_continuation(self.model, ids, num_scored[which], cache, self.prefill_chunk)
                for i in askers[which]:
                    key, _, continuation = requests[i]
                    answers[i] = scores.answer(continuation)
                    if key is not None:  # None: a part of a rolling request
                        self.cache_hook.add_partial("loglikelihood", key, answers[i])
                progress.update(len(askers[which]))
        return answers

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Continuations up to a stop string, the end token or `max_gen_toks` tokens.

        Raises:
            UserError: a task asks for as many new tokens as the model has context.
        """
        prompts, settings = [], []
        for request in requests:
            context, asked = request.args
            kwargs = normalize_gen_kwargs(asked, self.max_gen_toks)
            room = self.max_length - kwargs["max_gen_toks"]
            if room < 1:
                raise UserError(
                    f"--tasks {request.task_name}: {kwargs['max_gen_toks']} new tokens leave no room in a context of "
                    f"{self.max_length}; give a smaller --gen_kwargs max_gen_toks=N or a larger --model_args "
                    f"max_length=N"
                )
            tokens = self.fit(self.tok_encode(context) or [self.prefix_token_id], room, request)
            self.count_read(request, len(tokens), kwargs["max_gen_toks"])
            prompts.append(np.array(tokens, np.int32))
            settings.append(kwargs)
        self.warn_without_evictions()
        answers = [""] * len(requests)
        ends = [len(tokens) - 1 for tokens in prompts]
        with tqdm(total=len(requests), desc="generate", disable=disable_tqdm or self.rank != 0, delay=5) as progress:
            for i, cache in read_prefixes(self.model, prompts, ends, self.prefill_chunk):
                answers[i] = self.generate_prompt(prompts[i], cache, settings[i])
                self.cache_hook.add_partial("generate_until", requests[i].args, answers[i])
                progress.update()
        return answers

    def generate_prompt(self, prompt: np.ndarray, cache: Cache, kwargs: dict[str, Any]) -> str:
        """Goes on from a prompt int32 [T], whose first tokens `cache` has seen and no other needs.

        Args:
            prompt: tokens.
            cache: of one row.
            kwargs: normalised, as lm-eval does it.
        """
        eos = self.tok_decode(self.eot_token_id, skip_special_tokens=False)
        until, max_new_tokens = handle_stop_sequences(kwargs.pop("until"), eos=eos), kwargs.pop("max_gen_toks")
        ids = to_ids(prompt, self.model)
        num_beams = kwargs.get("num_beams") or 1
        if num_beams > 1:
            cache.batch_repeat_interleave(num_beams)  # transformers repeats the tokens alone
        output = self._model_generate(
            context=ids,
            max_length=len(prompt) + max_new_tokens,
            stop=until,
            attention_mask=torch.ones_like(ids),
            past_key_values=cache,
            **kwargs,
        )
        text = self.tok_decode(output[0, len(prompt) :].tolist())
        return postprocess_generated_text(text, stop=until, think_end_token=None)


def _check_arguments(batch_size: int | str, prefill_chunk: int, truncation_side: str) -> None:
    """
    Raises:
        UserError: one is out of range.
    """
    if str(batch_size) != "1":
        raise UserError(f"--batch_size {batch_size}: requests run one at a time; leave it out or give 1")
    if prefill_chunk < 1:
        raise UserError(f"prefill_chunk={prefill_chunk}: must be >= 1")
    if truncation_side not in ("middle", "left"):
        raise UserError(f"truncation_side={truncation_side}: must be middle or left")


def _place(device: str | None) -> torch.device:
    """The device that the command line asks for; of several processes, all told cuda:0 by lm-eval, each its own."""
    no_gpu = device is None or (device.startswith("cuda") and not torch.cuda.is_available())
    shared = dist.is_initialized() and dist.get_world_size() > 1
    return choose_device(find_rank().local_rank) if no_gpu or shared else torch.device(device)
