"""Token ids: those of the model's own fast tokenizer, special tokens as text, BOS and EOS where they belong."""

import json
import shutil
from pathlib import Path

import pytest
from tokenizers import Tokenizer, processors

from data_prep.tokenization import DocumentTokenizer, resolve_tokenizer
from data_prep.tokenizer_check import choose_backend
from pipeline.data.shard_format import DataError
from pipeline.errors import UserError

TEXTS = [
    "def f(x):\n\treturn x  # <|end|> <|im_end|> <|endoftext|>",
    " leading, Ünïcode, 漢字 🙂 e\u0301\r\n",
    "",
    "a" * 5000,
    Path(__file__).read_text(),
]


BACKENDS = pytest.mark.parametrize("backend", ["tiktoken", "tokenizers"])


def _tokenise(folder: Path, texts: list[str], append_eos: bool, backend: str = "tiktoken") -> list[list[int]]:
    tokenizer = DocumentTokenizer(resolve_tokenizer(str(folder), append_eos), backend)
    return [[*tokenizer.prefix, *tokenizer.encode(text).tolist(), *tokenizer.suffix] for text in texts]


@pytest.mark.slow
@BACKENDS
@pytest.mark.parametrize("which", ["tiny", "smollm2"])
def test_ids_equal_the_fast_tokenizer_of_transformers(which: str, backend: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue("tiny_tokenizer" if which == "tiny" else "smollm2")
    from transformers import AutoTokenizer

    reference = AutoTokenizer.from_pretrained(folder)
    expected = [reference(text, split_special_tokens=True)["input_ids"] for text in TEXTS]
    assert _tokenise(folder, TEXTS, False, backend) == expected
    with_eos = [[*ids, reference.eos_token_id] for ids in expected]
    assert _tokenise(folder, TEXTS, True, backend) == with_eos
    parsed = DocumentTokenizer(resolve_tokenizer(str(folder), False, "special"), backend)
    ids = [[*parsed.prefix, *parsed.encode(text).tolist()] for text in TEXTS]
    assert ids == [reference(text)["input_ids"] for text in TEXTS] != expected
    assert choose_backend(resolve_tokenizer(str(folder), True), TEXTS).name == "tiktoken"


@BACKENDS
def test_special_tokens_in_a_document_stay_text(tiny_tokenizer: Path, backend: str) -> None:
    ids = _tokenise(tiny_tokenizer, ["<|begin|>a<|end|>"], True, backend)[0]
    assert ids[0] == 0 and ids[-1] == 1
    assert 0 not in ids[1:] and 1 not in ids[:-1]


@BACKENDS
def test_truncation_and_padding_left_in_the_file_are_ignored(
    tiny_tokenizer: Path, tmp_path: Path, backend: str
) -> None:
    tokenizer = Tokenizer.from_file(str(tiny_tokenizer / "tokenizer.json"))
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=50)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    assert _tokenise(tmp_path, TEXTS, False, backend) == _tokenise(tiny_tokenizer, TEXTS, False)
    fingerprints = {resolve_tokenizer(str(f), append_eos=False).sha256 for f in (tmp_path, tiny_tokenizer)}
    assert len(fingerprints) == 1


@BACKENDS
def test_eos_is_not_doubled_where_the_tokenizer_adds_it_itself(
    tiny_tokenizer: Path, tmp_path: Path, backend: str
) -> None:
    tokenizer = Tokenizer.from_file(str(tiny_tokenizer / "tokenizer.json"))
    tokenizer.post_processor = processors.TemplateProcessing(single="$A <|end|>", special_tokens=[("<|end|>", 1)])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    shutil.copy(tiny_tokenizer / "tokenizer_config.json", tmp_path)
    assert _tokenise(tmp_path, ["abc"], True, backend)[0].count(1) == 1


@pytest.mark.parametrize(
    ("files", "eos"),
    [
        ({"tokenizer_config.json": {"eos_token": {"__type": "AddedToken", "content": "<|end|>"}}}, 1),
        ({"generation_config.json": {"eos_token_id": 0}}, 0),
        ({"generation_config.json": {"eos_token_id": [1, 0]}}, 1),
        ({"tokenizer_config.json": {"eos_token": "<|end|>"}, "generation_config.json": {"eos_token_id": 0}}, 1),
    ],
)
def test_where_eos_comes_from(tiny_tokenizer: Path, tmp_path: Path, files: dict, eos: int) -> None:
    shutil.copy(tiny_tokenizer / "tokenizer.json", tmp_path)
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
    assert resolve_tokenizer(str(tmp_path), append_eos=True).eos_token_id == eos


def _broken(folder: Path, tiny: Path, kind: str) -> str:
    if kind == "no tokenizer":
        return str(folder)
    (folder / "tokenizer.json").write_text({"not json": "{", "not a tokenizer": "{}"}.get(kind, ""))
    if kind in ("no eos", "unknown eos"):
        shutil.copy(tiny / "tokenizer.json", folder)
    if kind == "unknown eos":
        (folder / "tokenizer_config.json").write_text('{"eos_token": "</s>"}')
    return str(folder)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("no tokenizer", "holds no tokenizer.json"),
        ("not json", "is not a JSON object"),
        ("not a tokenizer", "has no tokenizer that can be read"),
        ("no eos", "--append_eos: no usable eos_token .* pass --append_eos false"),
        ("unknown eos", "--append_eos: .*found </s>"),
    ],
)
def test_unusable_tokenizer_is_one_line(tiny_tokenizer: Path, tmp_path: Path, kind: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        resolve_tokenizer(_broken(tmp_path, tiny_tokenizer, kind), append_eos=True)
    assert "\n" not in str(caught.value)


def test_missing_folder_that_is_no_hub_id_is_refused_without_the_network() -> None:
    with pytest.raises(DataError, match="--tokenizer /no/such/folder: neither a folder nor a hub id"):
        resolve_tokenizer("/no/such/folder", append_eos=True)
