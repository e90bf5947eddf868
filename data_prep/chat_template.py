"""A model's chat template, rendered as transformers' `apply_chat_template` renders it: sandboxed, without torch."""

import json
import re
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from typing import TYPE_CHECKING

from data_prep.readers.invalid import InvalidDocument
from pipeline.data.shard_format import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TEMPLATE_FILE = "chat_template.jinja"
TEMPLATE_FILES = (TEMPLATE_FILE, "additional_chat_templates/*.jinja", "special_tokens_map.json")
GENERATION_TAG = re.compile(r"\{%-?\s*generation\s*-?%\}")  # as transformers looks for it
# Some templates write today's date: the data would change from day to day.
FIXED_DATE = datetime(2024, 7, 26)
# Apart from what transformers compiles for itself in this process; the line break after it is not rendered.
FIXED_DATE_MARK = "{# its date is fixed #}\n"


@dataclass(frozen=True)
class ChatTemplate:
    """A template and what it may read: `variables` are the special tokens, by name. `where` names its tokenizer.

    `tool_text` is the template for conversations with tools, where it is another one.
    """

    where: str
    text: str
    variables: tuple[tuple[str, str], ...]
    tool_text: str | None = None

    @property
    def sha256(self) -> str:
        """Of all that decides a rendering (hex)."""
        parts = [self.text, dict(self.variables), *([] if self.tool_text is None else [self.tool_text])]
        return sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def mentions(self, name: str) -> bool:
        """Whether the template may read the variable."""
        return re.search(rf"\b{name}\b", self.text + (self.tool_text or "")) is not None

    def render(
        self,
        messages: list[dict[str, str]],
        tools: list[dict] | None = None,
        documents: list[dict] | None = None,
        add_generation_prompt: bool = False,
    ) -> tuple[str, list[tuple[int, int]] | None]:
        """The conversation's text, and the spans (in characters) between generation tags; None: it has no such tags.

        Raises:
            InvalidDocument: refused_by_template.
            DataError: no template at all for jinja.
        """
        # Slow to import, and only conversations need it.
        from jinja2 import TemplateError, TemplateSyntaxError
        from transformers.utils.chat_template_utils import _compile_jinja_template, render_jinja_template

        text = FIXED_DATE_MARK + (self.text if tools is None or self.tool_text is None else self.tool_text)
        is_tagged = GENERATION_TAG.search(text) is not None
        try:
            # The one that is rendered: compiled templates are kept by their text.
            _compile_jinja_template(text).environment.globals["strftime_now"] = FIXED_DATE.strftime
            rendered, spans = render_jinja_template(
                conversations=[messages],
                tools=tools,
                documents=documents,
                chat_template=text,
                return_assistant_tokens_mask=is_tagged,
                add_generation_prompt=add_generation_prompt,
                **dict(self.variables),
            )
        except TemplateSyntaxError as error:
            raise DataError(
                f"the chat template of {self.where} is not valid: {' '.join(str(error).split())}"
            ) from error
        except (TemplateError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError) as error:
            raise InvalidDocument("refused_by_template") from error
        return rendered[0], spans[0] if is_tagged else None


def find_chat_template(tokenizer: "PreTrainedTokenizerBase", where: str) -> ChatTemplate | None:
    """The tokenizer's (default) template; None: it has none."""
    found = tokenizer.chat_template
    templates = found if isinstance(found, dict) else {"default": found}
    if not isinstance(templates.get("default"), str):
        return None
    variables = tuple(tokenizer.special_tokens_map.items())
    return ChatTemplate(where, templates["default"], variables, templates.get("tool_use"))
