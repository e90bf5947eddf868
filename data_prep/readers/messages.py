"""From a row of instruction data to the list of messages that the chat template renders."""

import re

from data_prep.readers.invalid import InvalidDocument, check_text
from data_prep.sources import Conversations

# A role becomes part of the template's own text, so that a free one could spell a special token.
ROLES = ("system", "developer", "user", "assistant", "tool", "function", "ipython")
# Templates render these; without them the conversation would be another one.
UNSUPPORTED_FIELDS = ("tool_calls", "function_call", "reasoning_content", "reasoning", "thinking")
PLACEHOLDERS = re.compile(r"\{(document|content)\}")


def build_messages(row: dict, settings: Conversations) -> list[dict[str, str]]:
    """The row's messages, each {"role", "content"} alone, with its answer and document put in their places.

    A content that is a list of text parts is joined. The row's other fields, and the messages', are not rendered.

    Raises:
        InvalidDocument: malformed_messages (no list of messages with a role and a text; a document but no user's
            message to put it in), unknown_role (not one of ROLES), unsupported_message_field (tool calls, reasoning),
            empty_assistant_turn, missing_answer, missing_document, nul_bytes, invalid_utf8.
    """
    found = row.get(settings.messages_field)
    if not isinstance(found, list) or not found:
        raise InvalidDocument("malformed_messages")
    messages = [_message(message) for message in found]
    if settings.answers_field is not None and messages[-1]["role"] != "assistant":
        messages.append({"role": "assistant", "content": _answer(row.get(settings.answers_field))})
    if settings.document_field is not None:
        _place_document(messages, row.get(settings.document_field), settings.document_template)
    for message in messages:
        check_text(message["content"])
    return messages


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
    return {"role": role, "content": content}


def _is_text_part(part: object) -> bool:
    return isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)


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
