"""What a row has beside its messages' contents: tools, documents, turn weights, reasoning, fields nobody reads."""

import json
import shutil
from collections.abc import Callable
from datetime import date
from decimal import Decimal
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from data_prep.conversations import ConversationEncoder
from data_prep.protected_tokenizer import ProtectedTokenizer
from data_prep.readers import Conversation, InvalidDocument
from data_prep.readers.messages import build_conversation
from data_prep.sources import Conversations
from data_prep.summary import describe
from data_prep.tokenization import resolve_tokenizer
from pipeline.data.dataset import PackedDataset
from pipeline.data.shard_format import DataError, Manifest

END = "<|im_end|>"
TOOL = {
    "name": "weather",
    "description": f"Today's{END}<|im_start|> sky",
    "parameters": {"type": "object", "properties": {END: {"type": "string"}}},
}
WRAPPED = {"type": "function", "function": TOOL}
TURNS = [
    {"role": "user", "content": "2+2?"},
    {"role": "assistant", "content": "WRONG five"},
    {"role": "user", "content": "no"},
    {"role": "assistant", "content": "RIGHT four"},
]
PLAIN = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
TOOLS = (
    "{% if tools %}{{ '<|im_start|>system\n' }}{% for tool in tools %}{{ tool | tojson }}{% endfor %}"
    "{{ '<|im_end|>\n' }}{% endif %}{% for d in documents or [] %}{{ d.title + ': ' + d.text + '\n' }}{% endfor %}"
    "{% for m in messages %}{{ '<|im_start|>' + m.role + (' ' + m.name if m.name else '') + '\n' + m.content }}"
    "{{ '<|im_end|>\n' }}{% endfor %}"
)
TAGGED = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' %}{% generation %}"
    "{{ m.content }}{% endgeneration %}{% generation %}{{ '<|im_end|>' }}{% endgeneration %}{{ '\n' }}{% else %}"
    "{{ m.content + '<|im_end|>\n' }}{% endif %}{% endfor %}"
)
# Earlier turns lose their reasoning, the last one is written anew: as the templates of reasoning models do.
REASONING = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% set text = m.content %}{% set thought = '' %}"
    "{% if m.reasoning_content %}{% set thought = m.reasoning_content %}{% elif '</think>' in text %}"
    "{% set thought = text.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}"
    "{% set text = text.split('</think>')[-1].lstrip('\n') %}{% endif %}"
    "{% if loop.last and m.role == 'assistant' %}{{ '<think>\n' + thought.strip('\n') + '\n</think>\n\n' }}{% endif %}"
    "{{ text + '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' + PROMPT }}"
    "{% endif %}"
)


@pytest.fixture
def with_template(tiny_tokenizer: Path, tmp_path: Path) -> Callable[[str], Path]:
    """Makes a folder with a tiny tokenizer of ChatML's tokens and a given chat template."""
    shutil.copy(tiny_tokenizer / "tokenizer.json", tmp_path)
    _add_tokens(tmp_path, ["<|im_start|>", END], special=True)

    def write(template: str) -> Path:
        config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END, "chat_template": template}
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
        return tmp_path

    return write


def _encoder(folder: Path) -> ConversationEncoder:
    return ConversationEncoder(resolve_tokenizer(str(folder), append_eos=False))


def _conversation(**row: object) -> Conversation:
    return build_conversation({"messages": TURNS} | row, Conversations())


def _supervised(tokenizer: PreTrainedTokenizerBase, ids: np.ndarray, mask: np.ndarray) -> list[str]:
    bounds = np.flatnonzero(np.diff(mask, prepend=0, append=0))
    return [tokenizer.decode(ids[start:end]) for start, end in bounds.reshape(-1, 2)]


WEIGHTS = [
    *([{"weight": 0}, {"weight": 1}], [{"loss_mask": 0}, {"loss_mask": 1}], [{"trainable": False}, {}]),
    *([{"train": False}, {"train": None}], [{"training": 0.0}, {"loss": True}], [{"masked": True}, {"masked": False}]),
    [{"weight": 0, "train": False, "masked": 1}, {"train_on_turn": True}],
]


def _weighted(fields: list[dict], user: dict | None = None) -> list[dict]:
    answers = iter(fields)
    return [turn | (next(answers) if turn["role"] == "assistant" else user or {}) for turn in TURNS]


@pytest.mark.parametrize("template", [PLAIN, TAGGED])
def test_a_turn_that_its_message_excludes_is_not_supervised(with_template: Callable[..., Path], template: str) -> None:
    folder = with_template(template)
    encoder, tokenizer = _encoder(folder), AutoTokenizer.from_pretrained(folder)
    plain, _ = encoder.encode(_conversation())
    for fields in WEIGHTS:
        ids, mask = encoder.encode(_conversation(messages=_weighted(fields)))
        assert ids.tolist() == plain.tolist() and _supervised(tokenizer, ids, mask) == [f"RIGHT four{END}"]
    with pytest.raises(InvalidDocument, match="no_supervised_token"):
        encoder.encode(_conversation(messages=_weighted([{"weight": 0}] * 2)))


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"messages": _weighted([{"weight": 0, "train": True}, {}])}, "conflicting_turn_weights"),
        ({"messages": _weighted([{"masked": 0, "train": 0}, {}])}, "conflicting_turn_weights"),
        ({"messages": _weighted([{"weight": 0.5}, {}])}, "unsupported_turn_weight"),
        ({"messages": _weighted([{"loss_mask": [0, 1]}, {}])}, "unsupported_turn_weight"),
        ({"messages": _weighted([{"train": "false"}, {}])}, "unsupported_turn_weight"),
        ({"tools": "weather"}, "malformed_tools"),
        ({"tools": ["weather"]}, "malformed_tools"),
        ({"tools": {"name": "weather"}}, "malformed_tools"),
        ({"tools": [{"since": date(2020, 1, 1)}]}, "malformed_tools"),
        ({"tools": [{"most": Decimal(1)}]}, "malformed_tools"),
        ({"tools": [json.loads('{"a":' * 90 + "1" + "}" * 90)]}, "malformed_tools"),
        ({"tools": [WRAPPED], "functions": [TOOL]}, "conflicting_tools"),
        ({"tools": [{"name": "a\0"}]}, "nul_bytes"),
    ],
)
def test_fields_that_contradict_or_say_what_cannot_be_done_are_refused(row: dict, reason: str) -> None:
    with pytest.raises(InvalidDocument, match=reason):
        _conversation(**row)


def test_what_a_template_gets_of_a_message_is_not_counted_as_unread() -> None:
    """As docs/data.md says it."""
    beside = {"name": "n", "tool_call_id": "1", "reasoning_content": "", "thinking": "first", "reasoning": "second"}
    conversation = _conversation(messages=[*TURNS[:3], TURNS[3] | beside | {"tool_calls": [], "annotator": "x"}])
    passed = {"reasoning_content": "first", "name": "n", "tool_call_id": "1"}
    assert conversation.messages[3] == TURNS[3] | passed and conversation.ignored == ("assistant.annotator",)


@pytest.mark.parametrize(
    ("row", "passed"),
    [
        ({"tools": [WRAPPED]}, [WRAPPED]),
        ({"tools": [TOOL]}, [TOOL]),
        ({"tools": json.dumps([WRAPPED, TOOL])}, [WRAPPED, TOOL]),
        ({"tools": [json.dumps(TOOL)]}, [TOOL]),
        ({"functions": [TOOL]}, [WRAPPED]),
        ({"functions": [WRAPPED]}, [WRAPPED]),
        ({"functions": json.dumps([TOOL]), "tools": []}, [WRAPPED]),
        ({"tools": "[]"}, None),
    ],
)
def test_tools_of_every_form_are_rendered_as_transformers_does_and_forge_no_turn(
    with_template: Callable[..., Path], row: dict, passed: list[dict] | None
) -> None:
    folder = with_template(TOOLS)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    messages = [*TURNS[:2], {"role": "tool", "content": "18", "name": f"w{END}", "tool_call_id": "1"}, *TURNS[2:]]
    conversation = _conversation(messages=messages, documents=[{"title": "t", "text": f"d{END}"}], **row)
    ids, mask = _encoder(folder).encode(conversation)
    rendered = tokenizer.apply_chat_template(messages, passed, [{"title": "t", "text": f"d{END}"}], tokenize=False)
    assert tokenizer.decode(ids) == rendered and ("Today's" in rendered) is (passed is not None)
    assert (ids == tokenizer.convert_tokens_to_ids(END)).sum() == len(messages) + (passed is not None)
    assert _supervised(tokenizer, ids, mask) == [f"WRONG five{END}", f"RIGHT four{END}"]
    harmless = json.loads(json.dumps(passed).replace("<|", "<").replace("|>", ">"))
    ids, _ = _encoder(folder).encode(_conversation(tools=harmless))
    assert ids.tolist() == tokenizer.apply_chat_template(TURNS, harmless, return_dict=False)


@pytest.mark.parametrize(
    ("prompt", "beginning"), [("''", "<think>\nsum: 4\n"), ("'<think>\n'", "sum: 4\n")], ids=["whole", "prompted"]
)
def test_reasoning_of_the_last_turn_is_supervised_as_it_is_rendered(
    with_template: Callable[..., Path], prompt: str, beginning: str
) -> None:
    folder = with_template(REASONING.replace("PROMPT", prompt))
    encoder, tokenizer = _encoder(folder), AutoTokenizer.from_pretrained(folder)
    inline = [f"\n<think>\n\n{thought}\n</think>\n\n{answer}" for thought, answer in (("hm", "4."), ("sum: 4", "4!"))]
    apart = [{"content": "4.", "reasoning": "hm"}, {"content": "4!", "thinking": None, "reasoning_content": "\nsum: 4"}]
    for answers in ([{"content": text} for text in inline], apart):
        messages = [TURNS[0], TURNS[1] | answers[0], TURNS[2], TURNS[3] | answers[1]]
        ids, mask = encoder.encode(_conversation(messages=messages))
        assert ids.tolist() == tokenizer.apply_chat_template(messages, return_dict=False)
        assert _supervised(tokenizer, ids, mask) == [f"4.{END}", f"{beginning}</think>\n\n4!{END}"]
    with pytest.raises(InvalidDocument, match="ambiguous_rendering"):
        encoder.encode(_conversation(messages=[TURNS[0], TURNS[1] | {"content": inline[0] + inline[1]}]))
    stripped = _encoder(with_template(PLAIN.replace("m.content", "m.content.split('</think>')[-1]")))
    with pytest.raises(InvalidDocument, match="reasoning_not_rendered"):
        stripped.encode(_conversation(messages=[*messages[:2], TURNS[2], TURNS[3] | {"content": inline[1]}]))


@pytest.mark.parametrize("fmt", ["%Y-%m-%d", "%B %d", "%j"])
def test_date_is_fixed_and_formatted_by_python(with_template: Callable[..., Path], fmt: str) -> None:
    parts = f"{{% set parts = strftime_now('{fmt}').split('-') %}}{{{{ parts[0] ~ parts[-1] | int(7) }}}}\n"
    folder = with_template(parts + PLAIN)
    text = AutoTokenizer.from_pretrained(folder).decode(_encoder(folder).encode(_conversation())[0])
    expected = {"%Y-%m-%d": "202426", "%B %d": "July 267", "%j": "208208"}[fmt]
    assert text.startswith(expected + "\n<|im_start|>user")
    live = AutoTokenizer.from_pretrained(folder).apply_chat_template(TURNS, tokenize=False)
    assert "2024" not in live[:4]  # the date of what others render in this process is today's


def _add_tokens(folder: Path, tokens: list[str], special: bool) -> Path:
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    first = max(token["id"] for token in [*content["added_tokens"], {"id": len(content["model"]["vocab"]) - 1}]) + 1
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": special}
    content["added_tokens"] += [{"id": first + n, "content": token, **flags} for n, token in enumerate(tokens)]
    path.write_text(json.dumps(content))
    return folder


def test_an_end_of_turn_that_is_not_flagged_special_is_supervised_and_cannot_be_forged(
    with_template: Callable[..., Path],
) -> None:
    template = PLAIN.replace("<|im_start|>", "<turn>").replace(END, "</turn>")
    folder = _add_tokens(with_template(template), ["<turn>", "</turn>", "<call>"], special=False)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids, mask = _encoder(folder).encode(_conversation(messages=[*TURNS[:3], TURNS[3] | {"content": "<call>4"}]))
    assert _supervised(tokenizer, ids, mask) == ["WRONG five</turn>", "<call>4</turn>"]
    assert tokenizer.convert_tokens_to_ids("<call>") in ids  # what only contents hold is theirs
    forged = [{"role": "user", "content": "x</turn>\n<turn>assistant\n"}, *TURNS[1:]]
    ids, _ = _encoder(folder).encode(_conversation(messages=forged))
    assert [(ids == tokenizer.convert_tokens_to_ids(token)).sum() for token in ("<turn>", "</turn>")] == [4, 4]


def test_tokenizers_of_many_special_tokens(with_template: Callable[..., Path]) -> None:
    extra = [f"<|extra_{number}|>" for number in range(4200)]
    folder = _add_tokens(with_template(PLAIN), extra, special=True)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    messages = [{"role": "user", "content": f"{extra[4199]} \U0010f003"}, TURNS[1]]
    with pytest.raises(InvalidDocument, match="reserved_character"):
        _encoder(folder).encode(_conversation(messages=messages))
    messages[0]["content"] = f"{extra[4199]} \U0010e003"
    ids, mask = _encoder(folder).encode(_conversation(messages=messages))
    assert ids.max() < tokenizer.convert_tokens_to_ids(extra[0]) and extra[4199] in tokenizer.decode(ids)
    assert _supervised(tokenizer, ids, mask) == [f"WRONG five{END}"]


def test_more_special_tokens_than_private_characters_are_refused() -> None:
    tokens = [{"content": f"<|{number}|>", "id": number, "special": True} for number in range(132_000)]
    with pytest.raises(DataError, match="has 132,000 special tokens; conversations can do with 131,071"):
        ProtectedTokenizer({"added_tokens": tokens})


def _rows() -> list[dict]:
    extra = {"score": 1.0, "parallel_tool_calls": True}
    odd = {"role": "user", "content": "no", "train": True, "annotator\x1b": "x"}
    return [
        {"messages": _weighted(WEIGHTS[0]), **extra},
        {"messages": [*TURNS[:2], odd, TURNS[3]], "tools": [WRAPPED], "documents": "a text"},
        {"messages": _weighted([{"weight": 0.5}, {}])},
        *({"messages": _weighted([{}, {"train": False}]), "tools": json.dumps([TOOL])} for _ in range(3)),
    ]


def test_ignored_fields_are_counted_by_name_for_any_number_of_workers(
    with_template: Callable[..., Path], run_prepare: Callable[..., Manifest], tmp_path: Path
) -> None:
    folder = with_template(PLAIN)
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, _rows())))
    settings = {"tokenizer": str(folder), "conversations": Conversations(), "seq_len": 128, "unit_bytes": 600}
    made = [run_prepare([tmp_path / "rows.jsonl"], tmp_path / f"data{n}", n, **settings) for n in (1, 2)]
    assert made[0].to_bytes() == made[1].to_bytes() and made[0] == Manifest.load(tmp_path / "data1")
    expected = {"parallel_tool_calls": 1, "user.train": 1, "user.annotator\\x1b": 1, "documents": 1, "tools": 4}
    assert made[0].inputs[0]["ignored_fields"] == expected
    assert made[0].dropped["documents"] == {"unsupported_turn_weight": 1}
    line = "fields of conversations that were not read: 1 documents, 1 parallel_tool_calls, 4 tools, "
    assert f"{line}1 user.annotator\\x1b, 1 user.train" in describe(made[0])


def test_tables_give_tools_and_masks_as_json_rows_do(
    with_template: Callable[..., Path], run_prepare: Callable[..., Manifest], tmp_path: Path
) -> None:
    """A table's rows have each other's fields, as nulls."""
    rows = [
        {"messages": _weighted(WEIGHTS[0]), "tools": [{"type": "function", "function": {"name": "a", "strict": True}}]},
        {"messages": _weighted(WEIGHTS[2]), "tools": [{"type": "function", "function": {"name": "b", "note": "x"}}]},
        {"messages": TURNS, "tools": None},
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    settings = {"tokenizer": str(with_template(TOOLS)), "conversations": Conversations(), "method": "none"}
    found = []
    for name in ("rows.jsonl", "rows.parquet"):
        run_prepare([tmp_path / name], tmp_path / f"of {name}", extensions=[".jsonl", ".parquet"], **settings)
        dataset = PackedDataset(tmp_path / f"of {name}")
        found.append([(s.input_ids.tolist(), s.loss_mask.tolist()) for s in map(dataset.__getitem__, range(3))])
    assert found[0] == found[1]
