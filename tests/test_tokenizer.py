"""One tokenizer for data and generation, also where AutoTokenizer makes another pipeline than tokenizer.json has."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors, trainers
from transformers import AutoTokenizer

from data_prep.conversations import ConversationEncoder
from data_prep.prepare import PrepareSpec, prepare
from data_prep.readers import Conversation
from data_prep.sources import Conversations, Source
from data_prep.tokenization import DocumentTokenizer, resolve_tokenizer
from data_prep.units import PackingSpec
from data_prep.workers import run_with_processes
from pipeline.data.dataset import PackedDataset
from pipeline.data.shard_format import tokenizer_fingerprint
from pipeline.errors import UserError
from pipeline.tokenizer import fingerprint, fingerprint_of, load_tokenizer

TEXTS = ["def return import", " def  import\nreturn", "a[INST]def return", "漢 import", "", "x</s>def <s> import"]
SPECIAL = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]"]
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}"
    "{% else %}{{ ' ' + m.content + eos_token }}{% endif %}{% endfor %}"
)
MESSAGES = [
    {"role": "user", "content": "def [/INST] return"},
    {"role": "assistant", "content": "import def"},
    {"role": "user", "content": "def"},
    {"role": "assistant", "content": "return"},
]


def _sentencepiece() -> Tokenizer:
    """The layout of Llama-2's tokenizer.json: the normalizer puts a word's prefix before every stretch of text."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    bytes_alone = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(special_tokens=[*SPECIAL[:3], *bytes_alone, *SPECIAL[3:]], show_progress=False)
    tokenizer.train_from_iterator(["def return import a x def return import import INST [ ] / s < >"] * 3, trainer)
    content = json.loads(tokenizer.to_str())
    content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] in SPECIAL]
    tokenizer = Tokenizer.from_str(json.dumps(content))
    tokenizer.add_tokens([AddedToken("[pad]", normalized=True)])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer


CONFIG = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "chat_template": TEMPLATE}
LLAMA = {"model_type": "llama"}
MISTRAL = {"model_type": "mistral"}
DIFFERING = {
    "llama-2": (LLAMA, {"tokenizer_class": "LlamaTokenizer", "legacy": False}),
    "fast": (LLAMA, {"tokenizer_class": "LlamaTokenizerFast"}),
    "no prefix": (LLAMA, {"tokenizer_class": "LlamaTokenizer", "legacy": False, "add_prefix_space": False}),
    "mistral-7b alone": (None, {"tokenizer_class": "LlamaTokenizer", "legacy": True}),
    "added": (None, {"tokenizer_class": "PreTrainedTokenizerFast", "sep_token": "import"}),
}
SAME = {
    "as it stands": (None, {}),
    "named": (LLAMA, {"tokenizer_class": "PreTrainedTokenizerFast"}),
    "mistral-7b": (MISTRAL, {"tokenizer_class": "LlamaTokenizer", "legacy": True}),
}


def _write(folder: Path, tokenizer: Tokenizer, model: dict | None, config: dict) -> Path:
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(CONFIG | config))
    if model is not None:
        (folder / "config.json").write_text(json.dumps(model))
    return folder


@pytest.fixture
def make(tmp_path: Path) -> Callable[[str], Path]:
    return lambda kind: _write(tmp_path / kind, _sentencepiece(), *(DIFFERING | SAME)[kind])


@pytest.mark.parametrize("kind", [*DIFFERING, *SAME])
def test_data_has_the_ids_of_generation(make: Callable[[str], Path], tmp_path: Path, kind: str) -> None:
    folder = make(kind)
    tokenizer = load_tokenizer(str(folder))
    spec = resolve_tokenizer(str(folder), append_eos=False)
    of_file = Tokenizer.from_file(str(folder / "tokenizer.json"))
    expected = [tokenizer(text, split_special_tokens=True).input_ids for text in TEXTS]
    differs = [of_file.encode(text).ids for text in TEXTS] != [tokenizer(text).input_ids for text in TEXTS]
    assert differs is (kind in DIFFERING) and (spec.content is not None) is differs
    for stored in (spec, spec.stored(tmp_path)):
        documents = DocumentTokenizer(stored, "tokenizers")
        assert [[*documents.prefix, *documents.encode(text).tolist()] for text in TEXTS] == expected
        parsed = resolve_tokenizer(str(folder), False, "special")
        documents = DocumentTokenizer(parsed, "tokenizers")
        ids = [[*documents.prefix, *documents.encode(text).tolist()] for text in TEXTS]
        assert ids == [tokenizer(text).input_ids for text in TEXTS]
    path = folder / "tokenizer.json"
    assert spec.sha256 == fingerprint(tokenizer, path)
    assert (spec.sha256 == tokenizer_fingerprint(path)) is (kind in SAME)


def test_fingerprints_tell_pipelines_apart_and_not_spellings(make: Callable[[str], Path], tmp_path: Path) -> None:
    folders = {kind: make(kind) for kind in [*DIFFERING, *SAME]}
    found = {kind: fingerprint(load_tokenizer(str(f)), f / "tokenizer.json") for kind, f in folders.items()}
    assert found["llama-2"] == found["fast"] and found["as it stands"] == found["named"]
    assert len(set(found.values())) == 5
    old = json.loads((folders["named"] / "tokenizer.json").read_text())
    old["model"]["merges"] = [" ".join(merge) for merge in old["model"]["merges"]]
    del old["model"]["ignore_merges"]
    old["model"]["dropout"], old["decoder"], old["truncation"] = 0.5, None, None
    (folders["named"] / "tokenizer.json").write_text(json.dumps(old))
    spec = resolve_tokenizer(str(folders["named"]), append_eos=False)
    assert spec.content is None and spec.sha256 == tokenizer_fingerprint(folders["named"] / "tokenizer.json")


def test_dropout_draws_nothing(make: Callable[[str], Path], tmp_path: Path) -> None:
    folder = make("as it stands")
    content = json.loads((folder / "tokenizer.json").read_text())
    plain = resolve_tokenizer(str(folder), append_eos=False)
    content["model"]["dropout"] = 0.9
    (folder / "tokenizer.json").write_text(json.dumps(content))
    spec = resolve_tokenizer(str(folder), append_eos=False)
    text = "def return import " * 50
    expected = DocumentTokenizer(plain, "tokenizers").encode(text).tolist()
    assert spec.sha256 == plain.sha256
    for _ in range(2):
        assert DocumentTokenizer(spec, "tokenizers").encode(text).tolist() == expected
        assert load_tokenizer(str(folder))(text, add_special_tokens=False).input_ids == expected
        ids, _ = ConversationEncoder(spec).encode(Conversation([{"role": "user", "content": text}, *MESSAGES[1:]]))
        assert (
            ids.tolist()
            == ConversationEncoder(plain)
            .encode(Conversation([{"role": "user", "content": text}, *MESSAGES[1:]]))[0]
            .tolist()
        )


@pytest.mark.parametrize(("kind", "num_workers"), [("llama-2", 2), ("mistral-7b", 1)])
def test_a_folder_of_such_data_is_what_transformers_gives(
    make: Callable[[str], Path], tmp_path: Path, kind: str, num_workers: int
) -> None:
    """Texts and chats, also by other processes; the model whose files these are takes the folder for its own."""
    folder = make(kind)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    (tmp_path / "chats.jsonl").write_text(json.dumps({"messages": MESSAGES}))
    (tmp_path / "texts.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in TEXTS if text))
    sources = [
        Source("texts", inputs=[str(tmp_path / "texts.jsonl")]),
        Source("chats", inputs=[str(tmp_path / "chats.jsonl")], conversations=Conversations()),
    ]
    spec = PrepareSpec(str(folder), PackingSpec(128, "none", 10_000, 10_000), append_eos=False)
    output = tmp_path / "data"
    for _ in range(2):  # the second time it finds the folder complete
        manifest = run_with_processes(partial(prepare, sources, output, spec), num_workers)
    assert manifest.tokenizer_sha256 == fingerprint_of(str(folder)) and not (output / ".units").exists()
    *texts, chat = map(PackedDataset(output).__getitem__, range(len(TEXTS)))
    expected = [tokenizer(text, split_special_tokens=True).input_ids for text in TEXTS if text]
    assert [sample.input_ids.tolist() for sample in texts] == expected
    forged = tokenizer.convert_tokens_to_ids("[/INST]")
    assert (chat.input_ids == forged).sum() == 2
    harmless = [message | {"content": message["content"].replace("[/INST]", "x")} for message in MESSAGES]
    ids, mask = ConversationEncoder(resolve_tokenizer(str(folder), False)).encode(Conversation(harmless))
    assert ids.tolist() == tokenizer.apply_chat_template(harmless, return_dict=False)
    bounds = np.flatnonzero(np.diff(mask, prepend=0, append=0)).reshape(-1, 2)
    assert [tokenizer.decode(ids[a:b]).strip() for a, b in bounds] == ["import def</s>", "return</s>"]


def test_what_cannot_be_loaded_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match=r"--tokenizer .* has no tokenizer that can be read: ") as caught:
        load_tokenizer(str(tmp_path), "--tokenizer")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("model_type", ["qwen2", "ahn_qwen2"])
def test_a_model_without_a_tokenizer_is_one_line(tmp_path: Path, model_type: str) -> None:
    """transformers makes an empty one for it, of which every text has no token."""
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type, "ahn": {}}))
    with pytest.raises(UserError, match="tokenizer") as caught:
        load_tokenizer(str(tmp_path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["llama-2", "mistral-7b"])
def test_a_merged_folder_has_the_tokenizer_of_its_base(make: Callable[[str], Path], kind: str) -> None:
    """transformers chooses a tokenizer by the model's type, which is another one there."""
    folder = make(kind)
    base, name = load_tokenizer(str(folder)), fingerprint_of(str(folder))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({"model_type": f"ahn_{config['model_type']}", "ahn": {}}))
    merged = AutoTokenizer.from_pretrained(folder)
    assert type(merged) is type(base) and fingerprint_of(str(folder)) == name
    assert [merged(text).input_ids for text in TEXTS] == [base(text).input_ids for text in TEXTS]
