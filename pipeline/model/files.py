"""What a model folder holds, answered before torch is imported: its kind, tokenizer and window."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from pipeline.attention.window import WindowSpec
from pipeline.errors import UserError

ADAPTER_CONFIG = "ahn_config.json"
ADAPTER_WEIGHTS = "model.safetensors"
PUBLISHED_WINDOW = WindowSpec(num_sink_tokens=128, window_size=32640)
MAX_WEIGHTS_HEADER = 100_000_000  # that safetensors itself reads
WINDOW_FLAGS = ("num_sink_tokens", "window_size", "num_retained_tokens")
"""What of a window is chosen at inference, in the order in which `ModelFiles.choose_window` takes it."""
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
FETCHED = ("*.json", "model*.safetensors", "*.model", "*.txt", "*.jinja")
"""What models and tokenizers are read from; other *.safetensors are a second copy (Mistral's consolidated ones)."""


@dataclass(frozen=True)
class ModelFiles:
    """A folder as --model names it.

    `base` is an adapter's base (folder or hub id), None for a whole model. `window` is what the memory was
    stored with, None for a plain base. `has_scorer`: it has what chooses tokens to retain.
    """

    folder: Path
    kind: Literal["adapter", "published", "merged", "base"]
    base: str | None
    window: WindowSpec | None
    has_scorer: bool = False

    @property
    def tokenizer(self) -> str:
        """Folder or hub id that the tokenizer comes from."""
        return self.base or str(self.folder)

    def choose_window(
        self, num_sink_tokens: int | None, window_size: int | None, num_retained_tokens: int | None = None
    ) -> WindowSpec | None:
        """The stored window with whichever flag was given in its place; None for a plain base.

        Raises:
            UserError: a flag for a plain base, or tokens to retain without a scorer that chooses them.
        """
        flags = zip(WINDOW_FLAGS, (num_sink_tokens, window_size, num_retained_tokens), strict=True)
        given = {name: value for name, value in flags if value is not None}
        if self.window is None:
            for flag, value in given.items():
                raise UserError(f"--{flag} {value}: --model {self.folder} is a plain base, which has no window")
            return None
        if num_retained_tokens and not self.has_scorer:
            raise UserError(
                f"--num_retained_tokens {num_retained_tokens}: --model {self.folder} has no fitted scorer that chooses "
                f"tokens; leave the flag out, or train one (launchers/train.py --window.retained {num_retained_tokens})"
            )
        if num_retained_tokens == 0:
            given["decision_interval"] = 1  # nothing is decided
        return replace(self.window, **given)


def resolve_model(model: Path, base: str | None) -> ModelFiles:
    """Looks at the folder, or hub id, that --model names; what the hub has is fetched.

    Raises:
        UserError: no such model, not a model, damaged settings, or an adapter whose base is not on this machine.
    """
    model = fetch_model(str(model))
    if holds_memories_alone(model):
        if base is None:
            raise UserError(f"--model {model} is a published AHN checkpoint, which does not name its base: give --base")
        return ModelFiles(model, "published", _resolve_base(model, base, base), PUBLISHED_WINDOW)
    if (model / ADAPTER_CONFIG).is_file():
        with _parsing(model, ADAPTER_CONFIG):
            settings = json.loads((model / ADAPTER_CONFIG).read_bytes())
            (window, has_scorer), trained_on = _memory_of(settings), settings["base_model"]
            _check_type("base_model", trained_on, str)
        return ModelFiles(model, "adapter", _resolve_base(model, trained_on, base), window, has_scorer)
    if not (model / "config.json").is_file():
        raise UserError(f"--model {model} holds neither {ADAPTER_CONFIG} (adapter) nor config.json (model)")
    if base is not None:
        raise UserError(f"--base {base}: --model {model} is a whole model; only an adapter needs a base")
    with _parsing(model, "config.json"):
        memory = json.loads((model / "config.json").read_bytes()).get("ahn")
        window, has_scorer = (None, False) if memory is None else _memory_of(memory)
    return ModelFiles(model, "base" if window is None else "merged", None, window, has_scorer)


def fetch_model(model: str, flag: str = "--model") -> Path:
    """The folder of a model: a local one as it is, that of a hub id from this machine's cache or from the hub.

    Args:
        model: folder or hub id.
        flag: what named it, for messages.

    Raises:
        UserError: there is neither.
    """
    folder = Path(model)
    if folder.is_dir():
        return folder
    if folder.exists() or not HUB_ID.fullmatch(model):
        raise UserError(
            f"{flag} {model}: no such folder; give an adapter, a merged model or a base model, a folder or a hub id "
            f"(owner/name)"
        )
    from huggingface_hub import snapshot_download  # only for hub ids

    try:
        return Path(snapshot_download(model, allow_patterns=FETCHED))
    except (OSError, ValueError) as error:  # the hub's errors are these
        raise UserError(
            f"{flag} {model} is no local folder, and the hub gave nothing ({' '.join(str(error).split())[:200]}); "
            f"without a network, fetch it before, where there is one (hf download {model}), or name a folder"
        ) from error


def is_published_id(model: str) -> bool:
    """Whether `model` is a hub id of the published AHN collection and no local folder."""
    return HUB_ID.fullmatch(model) is not None and "/AHN-" in model and not Path(model).exists()


def holds_memories_alone(folder: Path) -> bool:
    """Whether the folder has the published layout: a config.json, and weights of memories without their base."""
    weights = folder / ADAPTER_WEIGHTS
    if not weights.is_file() or not (folder / "config.json").is_file() or (folder / ADAPTER_CONFIG).is_file():
        return False
    names = [name for name in read_weights_header(weights)[0] if name != "__metadata__"]
    return bool(names) and all(".ahn.fn." in name for name in names)


def find_weights(model: str) -> list[Path]:
    """The weight files of a model folder or a hub id, by name; each is whole, as far as its header tells.

    Raises:
        UserError: there is no such model, or a file of it is missing, unfinished or of another format.
    """
    folder = fetch_model(model)
    files = sorted(folder.glob("model*.safetensors"))
    if not files:
        raise UserError(
            f"--model {model}: no model*.safetensors in {folder}; other weight formats are not read "
            f"(convert with save_pretrained)"
        )
    for file in files:
        read_weights_header(file)
    return files


def read_weights_header(file: Path) -> tuple[dict, int]:
    """The header of a safetensors file, and the byte at which the tensors begin.

    Raises:
        UserError: names the file: it cannot be read, or is not whole (a git-lfs pointer, an interrupted download).
    """
    try:
        size = file.stat().st_size
        with open(file, "rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if size < 8 or length > min(size - 8, MAX_WEIGHTS_HEADER):
                raise ValueError("its header is cut short")
            header = json.loads(stream.read(length))
        entries = [entry for name, entry in header.items() if name != "__metadata__"]
        due = 8 + length + max((entry["data_offsets"][1] for entry in entries), default=0)
        if size != due:
            raise ValueError(f"its tensors end at byte {due}")
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}") from error
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{file} ({size} bytes) is no whole safetensors file ({' '.join(str(error).split())[:100]}); fetch it "
            f"again (git lfs pull, hf download)"
        ) from error
    return header, 8 + length


@contextmanager
def _parsing(model: Path, name: str) -> Iterator[None]:
    """Around reading the file of that name in the folder: any error is about it."""
    try:
        yield
    except OSError as error:
        raise UserError(f"--model {model}: {name} cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f"--model {model}: {name} is damaged ({type(error).__name__}: {error}); copy or export the model again"
        ) from error


def _memory_of(settings: dict) -> tuple[WindowSpec, bool]:
    """The window, and whether there is a scorer; models from before tokens were retained say nothing of either."""
    numbers = {name: settings[name] for name in ("num_sink_tokens", "window_size")}
    numbers |= {name: settings[name] for name in ("num_retained_tokens", "decision_interval") if name in settings}
    for name, value in numbers.items():
        _check_type(name, value, int)
    window, has_scorer = WindowSpec(**numbers), settings.get("has_scorer", False)
    _check_type("has_scorer", has_scorer, bool)
    return window, has_scorer or window.num_retained_tokens > 0


def _check_type(name: str, value: object, kind: type) -> None:
    if type(value) is not kind:
        raise TypeError(f"{name} is {value!r}")


def _resolve_base(adapter: Path, named: str, given: str | None) -> str:
    base = named if given is None else given
    if (Path(base) / "config.json").is_file() or (HUB_ID.fullmatch(base) and not Path(base).exists()):
        return base
    origin = f"--model {adapter} was trained on {named}, which" if given is None else f"--base {given}"
    raise UserError(f"{origin} is not a model folder on this machine; give the base model's folder with --base")


def find_tokenizer_json(model: str) -> Path:
    """tokenizer.json of a model folder or of a hub id.

    Raises:
        UserError: there is no such model, or it has no tokenizer.json.
    """
    folder = Path(model)
    if folder.is_dir():
        for name in ("config.json", "tokenizer.json"):
            if not (folder / name).is_file():
                raise UserError(f"--model {model} has no {name}; name a model folder")
        return folder / "tokenizer.json"
    if not HUB_ID.fullmatch(model):
        raise UserError(f"--model {model} does not exist; name a model folder or a hub id (owner/name)")
    from huggingface_hub import hf_hub_download  # only for hub ids

    try:
        return Path(hf_hub_download(model, "tokenizer.json"))
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"--model {model} is no local folder, and the hub gave no tokenizer.json: {reason}") from error
