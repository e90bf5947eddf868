"""From an example to the tokens that a model reads: whole or without its middle, and in the chat template."""

import hashlib
import json
from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from pipeline.errors import UserError
from pipeline.evaluation.long_context.suite import LongContextExample, Suite, TaskSpec
from pipeline.evaluation.long_context.truncation import SEAM_TOKENS, MiddleTruncation, count_template_tokens


class PromptEncoder:
    """Prompts as all variants of a run read them.

    Raises:
        UserError: `max_context` has no room for a task's prompt.
    """

    def __init__(
        self,
        benchmark: Suite,
        tasks: Sequence[TaskSpec],
        tokenizer: PreTrainedTokenizerBase,
        max_context: int | None,
        *,
        is_chat: bool,
    ) -> None:
        """`max_context`: tokens of prompt and answer together; None leaves every prompt whole."""
        self._tokenizer, self._is_chat = tokenizer, is_chat
        self._truncations: dict[str, MiddleTruncation] = {}
        template_tokens = count_template_tokens(tokenizer) if is_chat else 0
        for task in tasks if max_context is not None else ():
            room = max_context - task.max_new_tokens - template_tokens - SEAM_TOKENS
            if room < 2:
                raise UserError(
                    f"--max_context {max_context}: {task.name} generates up to {task.max_new_tokens:,} tokens, so it "
                    f"has no room for a prompt; give a larger one, or leave the task out of --tasks"
                )
            self._truncations[task.name] = MiddleTruncation(benchmark, tokenizer, room)

    def encode(self, example: LongContextExample) -> tuple[list[int], bool]:
        """Its tokens, and whether it lost its middle."""
        truncation = self._truncations.get(example.task)
        text = example.prompt if truncation is None else truncation.fit(example)
        is_truncated = text != example.prompt
        if self._is_chat:
            message = [{"role": "user", "content": text}]
            text = self._tokenizer.apply_chat_template(message, add_generation_prompt=True, tokenize=False)
        return self._tokenizer(text, add_special_tokens=not self._is_chat, verbose=False).input_ids, is_truncated

    @property
    def around_prompts(self) -> str | list[int]:
        """What the tokenizer puts around each: its template's fingerprint (some write a date), or special tokens."""
        if self._is_chat:
            return hashlib.sha256(json.dumps(self._tokenizer.chat_template).encode()).hexdigest()[:16]
        return self._tokenizer("").input_ids
