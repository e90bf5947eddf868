"""The one tokenizer of a model, for its data, its prompts and its evaluation: what AutoTokenizer makes of the files.

AutoTokenizer is what users' own programs load, and it may build another pipeline than tokenizer.json describes: the
class that tokenizer_config.json or the model's type names decides (Llama-2's takes the vocabulary alone from the file),
added_tokens_decoder adds tokens. So nobody reads tokenizer.json by himself.
"""

import hashlib
import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.data.shard_format import tokenizer_fingerprint
from pipeline.errors import EXIT_USER_ERROR, UserError
from pipeline.model.files import find_tokenizer_json
from pipeline.remembered import digest_of, recall, remember

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

REMEMBERED = "tokenizers"
TOKENIZER_FILES = ("tokenizer*", "config.json", "special_tokens_map.json", "added_tokens.json", "vocab*", "merges.txt",
                   "*.model", "*.tiktoken", "tekken.json")  # fmt: skip
CONFIG_FILE, MODEL_FILE = "tokenizer_config.json", "config.json"
# Neither transformers nor the registration of our models, which no tokenizer depends on, may import torch.
WITHOUT_TORCH = """
import sys, types
from transformers import utils
utils.is_torch_available = utils.import_utils.is_torch_available = lambda: False
unregistered = sys.modules["pipeline.model.registration"] = types.ModuleType("unregistered")
unregistered.register_ahn_model = lambda model_type: None
from pipeline.errors import run_cli
from pipeline.tokenizer import load_fingerprint
run_cli(lambda: print(load_fingerprint(sys.argv[1])))
"""


def load_tokenizer(
    name_or_path: str, flag: str = "--model", *, trust_remote_code: bool = False
) -> "PreTrainedTokenizerBase":
    """AutoTokenizer's, of a folder or hub id; it never draws (BPE dropout is off) and runs no code that came with it.

    A folder that names neither a tokenizer class nor a model has its tokenizer.json as it stands.

    Args:
        flag: what named it, for messages.

    Raises:
        UserError: it cannot be loaded, or is not of the `tokenizers` library.
    """
    # Takes seconds, most of them for torch.
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    kind = AutoTokenizer if _names_a_class(Path(name_or_path)) else PreTrainedTokenizerFast
    try:
        tokenizer = kind.from_pretrained(name_or_path, trust_remote_code=trust_remote_code)
    except Exception as error:  # tokenizers raises nothing more special, transformers nearly anything
        reason = " ".join(str(error).split())[:600] or type(error).__name__
        raise UserError(f"{flag} {name_or_path} has no tokenizer that can be read: {reason}") from error
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise UserError(
            f"{flag} {name_or_path}: {type(tokenizer).__name__} is not of the tokenizers library, on which data "
            f"preparation and evaluation rest; use a model that has a tokenizer.json"
        )
    if backend.get_vocab_size(with_added_tokens=False) < 2:  # transformers makes one up where files are missing
        raise UserError(f"{flag} {name_or_path} has no tokenizer's files; copy those of its base beside its weights")
    if getattr(backend.model, "dropout", None):
        backend.model.dropout = None
    return tokenizer


def _names_a_class(folder: Path) -> bool:
    """Whether AutoTokenizer finds out what to make of it: a hub id, or a folder that says so."""
    if not folder.is_dir() or (folder / MODEL_FILE).is_file():
        return True
    try:
        return not {"tokenizer_class", "auto_map"}.isdisjoint(json.loads((folder / CONFIG_FILE).read_bytes()))
    except (OSError, ValueError, TypeError):  # whoever needs the file says so
        return False


def read_pipeline(tokenizer: "PreTrainedTokenizerBase", tokenizer_json: Path) -> dict[str, Any]:
    """The tokenizer as a parsed tokenizer.json, which gives its very ids; nothing is truncated or padded.

    A padding that somebody left in the file has made a token of its pad token: that one is left out.
    """
    content, file = json.loads(tokenizer.backend_tokenizer.to_str()), json.loads(tokenizer_json.read_bytes())
    if file.get("padding"):
        known = {*_vocabulary(file), *(token["content"] for token in file["added_tokens"])}
        new = {file["padding"]["pad_token"]} - known
        content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] not in new]
    return content | {"truncation": None, "padding": None}


def _vocabulary(content: dict[str, Any]) -> set[str]:
    """Of a Unigram model, which lists [token, score] each, too."""
    return {token if isinstance(token, str) else token[0] for token in content["model"]["vocab"]}


def gives_ids_of(pipeline: dict[str, Any], tokenizer_json: Path) -> bool:
    """Whether the file describes that very pipeline, but for what changes no id (its decoder, say)."""
    content = json.loads(tokenizer_json.read_bytes())
    expected = _what_decides_ids(pipeline)
    if _what_decides_ids(content) == expected:
        return True
    from tokenizers import Tokenizer

    # Older files leave out what newer ones spell out.
    return _what_decides_ids(json.loads(Tokenizer.from_str(json.dumps(content)).to_str())) == expected


def fingerprint(tokenizer: "PreTrainedTokenizerBase", tokenizer_json: Path) -> str:
    """sha256 (hex) of all that decides ids: the file's where the file does, else that of the pipeline."""
    pipeline = read_pipeline(tokenizer, tokenizer_json)
    if gives_ids_of(pipeline, tokenizer_json):
        return tokenizer_fingerprint(tokenizer_json)
    canonical = json.dumps(_what_decides_ids(pipeline), sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def fingerprint_of(model: str) -> str:
    """The same, of the model in a folder or under a hub id; remembered for the contents of its files.

    Raises:
        UserError: there is none, or it has no tokenizer.
    """
    tokenizer_json = find_tokenizer_json(model)
    found = recall(REMEMBERED, _digest(model, tokenizer_json.parent))
    if found is None:
        found = load_fingerprint(model) if "torch" in sys.modules else _load_without_torch(model)
        remember(REMEMBERED, _digest(model, tokenizer_json.parent), found)  # a hub's folder may have got more files
    return found


def _digest(model: str, folder: Path) -> str:
    """Of all that AutoTokenizer looks at, and of those who look."""
    files = [path for name in TOKENIZER_FILES for path in sorted(folder.glob(name)) if path.is_file()]
    named = [part for path in files for part in (path.name, path)]
    versions = [version(package) for package in ("transformers", "tokenizers")]
    sources = [Path(__file__), Path(__file__).with_name("__init__.py")]
    return digest_of(["folder" if Path(model).is_dir() else "hub", *versions, *sources, *named])


def _load_without_torch(model: str) -> str:
    """In a process of its own, without the seconds that torch takes, before flags and files are known to be right."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", WITHOUT_TORCH, model]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode == EXIT_USER_ERROR:
        raise UserError(done.stderr.strip().splitlines()[-1].split(": ", 1)[1])
    if done.returncode != 0:
        raise RuntimeError(f"the tokenizer of {model} could not be loaded:\n{done.stderr}")
    return done.stdout.split()[-1]


def load_fingerprint(model: str) -> str:
    """The same, in this process."""
    tokenizer_json = find_tokenizer_json(model)
    return fingerprint(load_tokenizer(model), tokenizer_json)


def _what_decides_ids(content: dict[str, Any]) -> dict[str, Any]:
    """The parts of a tokenizer.json that decide the ids, in one spelling each."""
    model = dict(content["model"])
    model["dropout"] = None
    if model.get("type") == "BPE":
        merges = model["merges"]
        model["merges"] = [list(merge) if not isinstance(merge, str) else merge.split(" ") for merge in merges]
        model.setdefault("ignore_merges", False)
    for affix in ("continuing_subword_prefix", "end_of_word_suffix"):
        model[affix] = model.get(affix) or None
    processors = _parts(content.get("post_processor"), "processors")
    return {
        "added_tokens": sorted(content.get("added_tokens") or [], key=lambda token: token["id"]),
        "normalizer": _parts(content.get("normalizer"), "normalizers"),
        # A ByteLevel has a flag for offsets, and as a post-processor nothing else.
        "pre_tokenizer": [
            {name: value for name, value in part.items() if name != "trim_offsets"}
            for part in _parts(content.get("pre_tokenizer"), "pretokenizers")
        ],
        "post_processor": [part for part in processors if part["type"] != "ByteLevel"],
        "model": model,
    }


def _parts(section: dict[str, Any] | None, name: str) -> list[dict[str, Any]]:
    """The steps of a section that is absent, one step or a sequence of them."""
    if section is None:
        return []
    return [part for step in section[name] for part in _parts(step, name)] if name in section else [section]
