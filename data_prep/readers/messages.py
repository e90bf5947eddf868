"""From a row of instruction data to the conversation that the chat template renders."""

import json
import re
from dataclasses import dataclass, field

from data_prep.readers.invalid import InvalidDocument, check_text
from data_prep.sources import Conversations

# A role becomes part of the template's own text, so that a free one could spell a special token.
ROLES = ("system", "developer", "user", "assistant", "tool", "function", "ipython")
# Templates render these; without them the conversation would be another one.
UNSUPPORTED_FIELDS = ("tool_calls", "function_call")
REASONING_FIELDS = ("reasoning_content", "thinking", "reasoning")  # of one meaning, for transformers too
RENDERED_FIELDS = ("name", "tool_call_id")
# 1 or true: the turn is trained. OpenAI's and Mistral's `weight`, `train` and `training` of axolotl, `loss` of swift.
TRAINED_FIELDS = ("weight", "loss_mask", "trainable", "train", "training", "train_on_turn", "loss")
UNTRAINED_FIELD = "masked"  # torchtune's, the other way round
PLACEHOLDERS = re.compile(r"\{(document|content)\}")
MAX_DEPTH = 64  # of tools and documents: Python's recursion ends at about a thousand

TOOL_FIELDS = ("tools", "functions")
DOCUMENTS_FIELD = "documents"
# Fields of a row that would make another conversation of it in some other tool, and that nothing here reads.
IGNORED_ROW_FIELDS = (
    *("system", "system_prompt", "tool_choice", "function_call", "parallel_tool_calls", "chat_template"),
    *("chat_template_kwargs", "enable_thinking", *TRAINED_FIELDS, UNTRAINED_FIELD),
)
ROW_FIELDS = (*TOOL_FIELDS, DOCUMENTS_FIELD, *IGNORED_ROW_FIELDS)


@dataclass(frozen=True)
class Conversation:
    """A row as `apply_chat_template` takes it.

    Attributes:
        messages: each {"role", "content"}, and "reasoning_content", "name", "tool_call_id" where it has them.
        tools, documents: what the template is given beside the messages.
        untrained: numbers of the assistant's turns that the row excludes from the loss.
        ignored: names of fields that nothing reads though they may change the conversation's meaning; a message's
            after its role, as `assistant.name`.
    """

    messages: list[dict[str, str]]
    tools: list[dict] | None = None
    documents: list[dict] | None = None
    untrained: frozenset[int] = frozenset()
    ignored: tuple[str, ...] = field(default=(), compare=False)

    @property
    def num_bytes(self) -> int:
        """UTF-8 length of what the messages say."""
        return sum(len(m["content"].encode()) + len(m.get("reasoning_content", "").encode()) for m in self.messages)


def build_conversation(row: dict, settings: Conversations) -> Conversation:
    """The row's messages, with its answer and document put in their places, and what belongs to them.

    A content that is a list of text parts is joined. Fields that are null count as absent.

    Raises:
        InvalidDocument: malformed_messages (no list of messages with a role and a text; a document but no user's
            message to put it in), unknown_role (not one of ROLES), unsupported_message_field (tool calls),
            malformed_tools, conflicting_tools, conflicting_turn_weights, unsupported_turn_weight (neither 0 nor 1),
            empty_assistant_turn, missing_answer, missing_document, nul_bytes, invalid_utf8.
    """
    found = row.get(settings.messages_field)
    if not isinstance(found, list) or not found:
        raise InvalidDocument("malformed_messages")
    messages = [_message(message) for message in found]
    trained = [_is_trained(message) for message in found]
    untrained = frozenset(
        n for n, (message, is_trained) in enumerate(zip(messages, trained, strict=True))
        if message["role"] == "assistant" and is_trained is False
    )  # fmt: skip
    claimed = {settings.messages_field, settings.answers_field, settings.document_field}
    fields = {name: row[name] for name in ROW_FIELDS if name not in claimed and row.get(name) is not None}
    ignored = [name for name in IGNORED_ROW_FIELDS if name in fields]
    documents = _documents(fields)
    if documents is None and DOCUMENTS_FIELD in fields:
        ignored.append(DOCUMENTS_FIELD)
    for message, is_trained in zip(found, trained, strict=True):
        ignored += _ignored_fields(message, is_trained)
    if settings.answers_field is not None and messages[-1]["role"] != "assistant":
        messages.append({"role": "assistant", "content": _answer(row.get(settings.answers_field))})
    if settings.document_field is not None:
        _place_document(messages, row.get(settings.document_field), settings.document_template)
    conversation = Conversation(messages, _tools(fields), documents, untrained, tuple(ignored))
    for text in _texts([messages, conversation.tools, documents]):
        check_text(text)
    return conversation


def without_nulls(value: object) -> object:
    """The value without its dicts' null fields: in a table, every row has the fields of all rows."""
    if isinstance(value, dict):
        return {name: without_nulls(item) for name, item in value.items() if item is not None}
    return [without_nulls(item) for item in value] if isinstance(value, list) else value


def _message(message: object) -> dict[str, str]:
    if not isinstance(message, dict):
        raise InvalidDocument("malformed_messages")
    if any(message.get(name) for name in UNSUPPORTED_FIELDS):
        raise InvalidDocument("unsupported_message_field")
    role, content = message.get("role"), message.get("content")
    if isinstance(content, list) and all(_is_text_part(part) for part in content):
        content = "".join(part["text"] for part in content)
    if not isinstance(role, str) or not isinstance(content, str):
        raise InvalidDocument("malformed_messages")
    if role not in ROLES:
        raise InvalidDocument("unknown_role")
    if role == "assistant" and not content.strip():
        raise InvalidDocument("empty_assistant_turn")
    reasoning = next((message[name] for name in REASONING_FIELDS if message.get(name)), None)
    others = {"reasoning_content": reasoning, **{name: message.get(name) for name in RENDERED_FIELDS}}
    others = {name: value for name, value in others.items() if value is not None}
    if not all(isinstance(value, str) for value in others.values()) or (reasoning and role != "assistant"):
        raise InvalidDocument("unsupported_message_field")
    return {"role": role, "content": content, **others}


def _is_text_part(part: object) -> bool:
    return isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)


def _is_trained(message: dict) -> bool | None:
    """Whether the message says that its turn is trained; None where it says nothing."""
    given = {name: message[name] for name in (*TRAINED_FIELDS, UNTRAINED_FIELD) if message.get(name) is not None}
    if any(not isinstance(value, bool | int | float) or value not in (0, 1) for value in given.values()):
        raise InvalidDocument("unsupported_turn_weight")
    asked = {bool(value) is (name != UNTRAINED_FIELD) for name, value in given.items()}
    if len(asked) > 1:
        raise InvalidDocument("conflicting_turn_weights")
    return asked.pop() if asked else None


def _ignored_fields(message: dict, is_trained: bool | None) -> list[str]:
    """What the message holds beside that which is rendered or masks it; the loss is never taken on a user's turn."""
    role = message["role"]
    masks = (*TRAINED_FIELDS, UNTRAINED_FIELD)
    read = {"role", "content", *UNSUPPORTED_FIELDS, *REASONING_FIELDS, *RENDERED_FIELDS, *masks}
    asked = [name for name in masks if message.get(name) is not None] if is_trained and role != "assistant" else []
    return [f"{role}.{n}" for n in (*asked, *(n for n in message if n not in read)) if message.get(n) is not None]


def _tools(fields: dict) -> list[dict] | None:
    """The row's tools as dicts; `functions` is OpenAI's older name for what is now within {"type": "function"}."""
    given = [name for name in TOOL_FIELDS if fields.get(name)]
    if not given:
        return None
    if len(given) > 1:
        raise InvalidDocument("conflicting_tools")
    tools = _parsed(fields[given[0]])
    tools = [_parsed(tool) for tool in tools] if isinstance(tools, list) else tools
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise InvalidDocument("malformed_tools")
    if given[0] == "functions":
        tools = [tool if "function" in tool else {"type": "function", "function": tool} for tool in tools]
    if not _is_json(tools):
        raise InvalidDocument("malformed_tools")
    return tools or None


def _parsed(value: object) -> object:
    """The value, or what it says where it is JSON in a string."""
    try:
        return json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError) as error:
        raise InvalidDocument("malformed_tools") from error


def _documents(fields: dict) -> list[dict] | None:
    """What a template for retrieval renders; None where it is something else by the same name."""
    documents = fields.get(DOCUMENTS_FIELD)
    fits = isinstance(documents, list) and documents and all(isinstance(d, dict) for d in documents)
    return documents if fits and _is_json(documents) else None


def _is_json(value: object) -> bool:
    """Whether a template can render it and a hash be made of it: no dates, bytes or numbers of hundreds of digits."""
    if isinstance(value, dict):
        return all(isinstance(name, str) and _is_json(part) for name, part in value.items())
    if isinstance(value, list):
        return all(map(_is_json, value))
    return value is None or isinstance(value, str | int | float | bool)


def _answer(answers: object) -> str:
    first = answers[0] if isinstance(answers, list) and answers else answers
    if not isinstance(first, str) or not first.strip():
        raise InvalidDocument("missing_answer")
    return first


def _place_document(messages: list[dict[str, str]], document: object, template: str) -> None:
    """Joins the document to the first user's message."""
    if not isinstance(document, str) or not document.strip():
        raise InvalidDocument("missing_document")
    first = next((message for message in messages if message["role"] == "user"), None)
    if first is None:
        raise InvalidDocument("malformed_messages")
    texts = {"document": document, "content": first["content"]}
    # In one pass: a document may itself contain "{content}".
    first["content"] = PLACEHOLDERS.sub(lambda found: texts[found[1]], template)


def _texts(value: object, depth: int = MAX_DEPTH) -> list[str]:
    """Every string in the value, the names of fields too."""
    if depth == 0:
        raise InvalidDocument("malformed_tools")
    if isinstance(value, str):
        return [value]
    parts = [*value, *value.values()] if isinstance(value, dict) else value if isinstance(value, list) else []
    return [text for part in parts for text in _texts(part, depth - 1)]
