"""The ids that a tokenizer's post-processor puts before and after a text: BOS, say."""

from itertools import chain

from tokenizers import Tokenizer

from data_prep.text_rules import UnsupportedTokenizer

Surroundings = tuple[tuple[int, ...], tuple[int, ...]]


def find_surroundings(tokenizer: Tokenizer) -> Surroundings:
    """(prefix, suffix) as seen from outside."""
    encoding = tokenizer.encode("a")
    own = [i for i, is_special in enumerate(encoding.special_tokens_mask) if not is_special]
    first, end = (own[0], own[-1] + 1) if own else (len(encoding.ids),) * 2
    return tuple(encoding.ids[:first]), tuple(encoding.ids[end:])


def read_surroundings(post_processor: dict | None) -> Surroundings:
    """The same, read off a parsed tokenizer.json: to load `tokenizers` for that alone takes too long.

    Raises:
        UnsupportedTokenizer: a post-processor of another kind than ByteLevel and TemplateProcessing.
    """
    prefix: list[int] = []
    suffix: list[int] = []
    for part in post_processor.get("processors", [post_processor]) if post_processor else []:
        if part["type"] == "ByteLevel":  # changes offsets, no ids
            continue
        if part["type"] != "TemplateProcessing":
            raise UnsupportedTokenizer(f"post-processor {part['type']}")
        template = part["single"]
        texts = [i for i, item in enumerate(template) if "Sequence" in item]
        if len(texts) != 1:
            raise UnsupportedTokenizer("a post-processor that does not want a text once")
        prefix = [*_special_ids(part, template[: texts[0]]), *prefix]
        suffix = [*suffix, *_special_ids(part, template[texts[0] + 1 :])]
    return tuple(prefix), tuple(suffix)


def _special_ids(part: dict, template: list[dict]) -> chain[int]:
    return chain.from_iterable(part["special_tokens"][item["SpecialToken"]["id"]]["ids"] for item in template)
