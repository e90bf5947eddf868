"""Prompts that exceed the model's context lose their middle, so that instruction and question both stay."""

from collections import Counter

from transformers import PreTrainedTokenizerBase

from pipeline.evaluation.long_context.suite import LongContextExample, Suite

SEAM_TOKENS = 8  # room for what tokenising a shortened prompt again may add


def count_template_tokens(tokenizer: PreTrainedTokenizerBase) -> int:
    """Tokens that the tokenizer's chat template puts around one user message."""
    empty = [{"role": "user", "content": ""}]
    text = tokenizer.apply_chat_template(empty, add_generation_prompt=True, tokenize=False)
    return len(tokenizer(text, add_special_tokens=False).input_ids)


class MiddleTruncation:
    """Fits prompts to a number of tokens as the suite's official code does, and counts by task what it cut.

    `prompts` and `truncated` map a task's name to how many prompts came through and how many of them were cut.
    """

    def __init__(self, suite: Suite, tokenizer: PreTrainedTokenizerBase, max_prompt_tokens: int) -> None:
        """`max_prompt_tokens`, at least 2: the context less the new tokens and less what a chat template adds."""
        self._decodes_halves_apart = suite.decodes_halves_apart
        self._tokenizer = tokenizer
        self._half = max_prompt_tokens // 2
        self.max_prompt_tokens = max_prompt_tokens
        self.prompts: Counter[str] = Counter()
        self.truncated: Counter[str] = Counter()

    def fit(self, example: LongContextExample) -> str:
        """The example's prompt, or the text of its first and last `max_prompt_tokens // 2` tokens.

        Counted with the tokenizer's special tokens, which the text then lacks. Tokenised again, the seam may give
        other tokens than were kept, a few more at most.
        """
        self.prompts[example.task] += 1
        tokens = self._tokenizer(example.prompt, truncation=False, verbose=False).input_ids
        if len(tokens) <= self.max_prompt_tokens:
            return example.prompt
        self.truncated[example.task] += 1
        head, tail = tokens[: self._half], tokens[-self._half :]
        kept = (head, tail) if self._decodes_halves_apart else (head + tail,)
        return "".join(self._tokenizer.decode(part, skip_special_tokens=True) for part in kept)
