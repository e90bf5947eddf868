"""A model's chat template, rendered as transformers' `apply_chat_template` renders it: sandboxed, without torch."""

import json
import re
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from pathlib import Path

from data_prep.readers.invalid import InvalidDocument
from pipeline.data.shard_format import DataError

TEMPLATE_FILE = "chat_template.jinja"
CONFIG_FILE = "tokenizer_config.json"
SPECIAL_TOKENS_FILE = "special_tokens_map.json"
TEMPLATE_FILES = (TEMPLATE_FILE, CONFIG_FILE, SPECIAL_TOKENS_FILE)
VARIABLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
GENERATION_TAG = re.compile(r"\{%-?\s*generation\s*-?%\}")  # as transformers looks for it
# Some templates write today's date: the data would change from day to day.
FIXED_DATE = datetime(2024, 7, 26)
# Apart from what transformers compiles for itself in this process; the line break after it is not rendered.
FIXED_DATE_MARK = "{# its date is fixed #}\n"


@dataclass(frozen=True)
class ChatTemplate:
    """A template and what it may read: `variables` are the special tokens. `path` is the file it comes from."""

    path: Path
    text: str
    variables: dict[str, str]

    @property
    def sha256(self) -> str:
        """Of all that decides a rendering (hex)."""
        return sha256(json.dumps([self.text, self.variables], sort_keys=True).encode()).hexdigest()

    def mentions(self, name: str) -> bool:
        """Whether the template may read the variable."""
        return re.search(rf"\b{name}\b", self.text) is not None

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

        text = FIXED_DATE_MARK + self.text
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
                **self.variables,
            )
        except TemplateSyntaxError as error:
            raise DataError(f"the chat template of {self.path} is not valid: {' '.join(str(error).split())}") from error
        except (TemplateError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError) as error:
            raise InvalidDocument("refused_by_template") from error
        return rendered[0], spans[0] if is_tagged else None


def load_chat_template(folder: Path) -> ChatTemplate:
    """The chat template of a tokenizer's folder: chat_template.jinja, else tokenizer_config.json's (default) one.

    Raises:
        DataError: there is none, or a file that cannot be read.
    """
    config = _read_json(folder / CONFIG_FILE)
    variables = _special_tokens(_read_json(folder / SPECIAL_TOKENS_FILE) | config)
    path = folder / TEMPLATE_FILE
    if path.is_file():
        return ChatTemplate(path, _read(path), variables)
    found = config.get("chat_template")
    if isinstance(found, list):  # several, for different uses
        found = {entry.get("name"): entry.get("template") for entry in found if isinstance(entry, dict)}
    if isinstance(found, dict):
        found = found.get("default")
    if not isinstance(found, str):
        raise DataError(
            f"--tokenizer {folder}: conversations need a chat template, and neither {TEMPLATE_FILE} nor {CONFIG_FILE} "
            "has one; use the tokenizer of an instruction-tuned model, or add one of these files"
        )
    return ChatTemplate(folder / CONFIG_FILE, found, variables)


def _special_tokens(config: dict) -> dict[str, str]:
    tokens = {name: config.get(name) for name in VARIABLES}
    tokens = {name: token.get("content") if isinstance(token, dict) else token for name, token in tokens.items()}
    return {name: token for name, token in tokens.items() if isinstance(token, str)}


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read ({error})") from error


def _read_json(path: Path) -> dict:
    if not path.is_file():
        return {}
    try:
        content = json.loads(_read(path))
    except ValueError as error:
        raise DataError(f"{path} is not JSON ({error})") from error
    return content if isinstance(content, dict) else {}
