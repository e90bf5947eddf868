"""The fast encoder gives the ids of `tokenizers` on every text, or says that it cannot; cuts change no id."""

import json
import random
import sys
import unicodedata
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

from data_prep import tokenization
from data_prep.fast_tokenizer import FallbackNeeded, FastEncoder, _byte_alphabet
from data_prep.text_rules import _SAFE_CUT, read_text_rules, split_at_safe_cuts
from data_prep.tokenization import DocumentTokenizer, TokenizerSpec, load_reference
from data_prep.tokenizer_check import choose_backend
from tests.qwen_tokenizer import NotToBeHad, fetch_qwen_tokenizer

HEAD = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
TAIL = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
DIGITS = {"qwen2": r"\p{N}", "llama3": r"\p{N}{1,3}"}
KINDS = ("gpt2", "digits", "qwen2", "llama3", "sparse digits")
REAL = ("smollm2", "qwen2.5")
PROSE = (
    "It's 2024; we'll see THEY'RE here, don't you?\r\n\r\n  漢字 かな 한국어 Привет 12 345\tx  \n ½ ٣ é 🙂 => <tag> "
)
ATOMS = [
    *(
        "a",
        "Zz",
        "the",
        "1",
        "42",
        "'",
        "'s",
        "'LL",
        "'re",
        "ſ",
        " ",
        "  ",
        "\n",
        "\r",
        "\r\n",
        "\t",
        "\v",
        "\x1c",
        "\x85",
    ),
    *(
        ".",
        ",",
        "=>",
        "!",
        "\xa0",
        "\u2028",
        "\u3000",
        "\u200b",
        "é",
        "e\u0301",
        "\u0308",
        "\u0345",
        "½",
        "٣",
        "Ⅷ",
        "漢",
        "かな",
    ),
    *(
        "。",
        "、",
        "が",
        "か\u3099",
        "한",
        "\u1112\u1161\u11ab",
        "Жы",
        "ำ",
        "🙂",
        "👍🏽",
        "\x00",
        "\x04",
        "\U00011de3",
        "\U000f0000",
    ),
    *("x.\n", "。\n", "!\r\n", "\u3000、", "..\n", "<|end|>", "<|end|", "<tool>", "</tool", "ool>"),
]
# hypothesis likes texts short and plain, and those hold few cuts: half of them are drawn by a seed.
TEXTS = st.lists(st.sampled_from(ATOMS) | st.text(max_size=3), max_size=40).map("".join) | st.integers(0, 1 << 32).map(
    lambda seed: "".join(random.Random(seed).choices(ATOMS, k=150))
)


def _train(folder: Path, kind: str) -> Path:
    """A tokenizer of the same parts as the real ones; "sparse" lacks the bytes that its training text lacks."""
    tokenizer = Tokenizer(models.BPE())
    if kind in DIGITS:
        split = pre_tokenizers.Split(Regex(HEAD + DIGITS[kind] + TAIL), "isolated")
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.normalizer = normalizers.NFC()
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    else:
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
        digits = pre_tokenizers.Digits(individual_digits=True)
        tokenizer.pre_tokenizer = byte_level if kind == "gpt2" else pre_tokenizers.Sequence([digits, byte_level])
    alphabet = [] if kind.startswith("sparse") else pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=1500, special_tokens=["<|end|>"], initial_alphabet=alphabet, show_progress=False
    )
    joined = "x.\nx。\nx\u3000、x..\r\nx!\n" * 40 + "\n" * 40 + " " * 40 + "x"  # what a wrong cut would part
    tokenizer.train_from_iterator([PROSE * 3, joined, Path(__file__).read_text()], trainer)
    tokenizer.add_tokens([AddedToken("<tool>", normalized=False)])
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def _spec(folder: Path, mode: str = "plain", eos: int | None = None) -> TokenizerSpec:
    return TokenizerSpec(str(folder / "tokenizer.json"), "name", "0" * 64, eos, mode)


def _expected(reference: Tokenizer, text: str) -> list[int]:
    return reference.encode(text, add_special_tokens=False).ids


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {kind: _train(tmp_path_factory.mktemp("tokenizer"), kind) for kind in KINDS}


@pytest.fixture(scope="session")
def find_folder(folders: dict[str, Path], request: pytest.FixtureRequest) -> Callable[[str], Path]:
    def find(kind: str) -> Path:
        if kind == "smollm2":
            return request.getfixturevalue("smollm2")
        if kind == "qwen2.5":
            try:
                return fetch_qwen_tokenizer(Path(__file__).parents[2] / ".cache")
            except NotToBeHad as reason:
                pytest.skip(f"Qwen2.5's tokenizer is not to be had: {reason}")
        return folders[kind]

    return find


@pytest.mark.parametrize("kind", [*KINDS, *(pytest.param(kind, marks=pytest.mark.slow) for kind in REAL)])
def test_ids_are_those_of_tokenizers_whole_cut_or_in_chunks(kind: str, find_folder: Callable) -> None:
    folder = find_folder(kind)
    assert choose_backend(_spec(folder), [PROSE]).name == "tiktoken"
    references = {mode: load_reference(_spec(folder, mode)) for mode in ("plain", "special")}
    both = {(m, b): DocumentTokenizer(_spec(folder, m), b) for m in references for b in ("tiktoken", "tokenizers")}

    num_cuts = 0

    @settings(max_examples=250, deadline=None, derandomize=True)
    @given(text=TEXTS, cuts=st.lists(st.integers(0, 60)), size=st.integers(1, 20))
    def check(text: str, cuts: list[int], size: int) -> None:
        nonlocal num_cuts
        bounds = [0, *sorted(cuts), len(text)]
        chunks = [text[a:b] for a, b in pairwise(bounds)]
        pieces = list(split_at_safe_cuts(chunks, size))
        assert "".join(pieces) == text
        num_cuts += len(_SAFE_CUT.findall(text))
        for (mode, backend), tokenizer in both.items():
            expected = _expected(references[mode], text)
            assert tokenizer.encode(text).tolist() == expected, backend
            assert [i for piece in pieces for i in tokenizer.encode(piece).tolist()] == expected, backend
            for cut in _SAFE_CUT.finditer(text):
                left, right = text[: cut.end()], text[cut.end() :]
                assert [*tokenizer.encode(left).tolist(), *tokenizer.encode(right).tolist()] == expected, backend

    check()
    assert num_cuts > 300
    refused = kind != "gpt2"  # the texts held what tiktoken refuses, too; but GPT-2's parts leave nothing to refuse
    assert {b: t.num_fallbacks > 0 for (_, b), t in both.items()} == {"tiktoken": refused, "tokenizers": False}


@pytest.mark.parametrize("backend", ["tiktoken", "tokenizers"])
def test_a_long_text_in_chunks_gives_its_ids_in_pieces(folders: dict[str, Path], backend: str) -> None:
    text = PROSE * 3000
    tokenizer = DocumentTokenizer(_spec(folders["digits"]), backend)
    expected = _expected(load_reference(_spec(folders["digits"])), text)
    assert tokenizer.encode(text).tolist() == expected
    for size in (1, 1000, 100_000, len(text)):
        arrays = list(tokenizer.encode_stream(text[i : i + size] for i in range(0, len(text), size)))
        assert np.concatenate(arrays).tolist() == expected
        assert len(arrays) > 5 and {a.dtype for a in arrays} == {np.dtype(np.uint32)}
    assert tokenizer.num_fallbacks == 0


def test_pieces_stay_small_and_every_chunk_is_drawn_when_it_is_needed() -> None:
    drawn = 0

    def chunks() -> Iterator[str]:
        nonlocal drawn
        for drawn in range(1, 1001):  # noqa: B007
            yield "some words\n" * 100

    pieces = split_at_safe_cuts(chunks(), 5000)
    assert len(next(pieces)) < 5010 and drawn < 12
    assert max(map(len, pieces)) < 10_010 and drawn == 1000


TRAPS = {
    "blanks": " " * 1_000_000,
    "blanks before a word": " " * 300_000 + "a",
    "newlines": "\n" * 300_000,
    "one word": "a" * 300_000,
    "quotes": "'" * 300_000,
    "base64": np.random.default_rng(0).bytes(150_000).hex(),
    "CJK without blanks": "漢字仮名交じり文の例" * 30_000,
    "marks": "e" + "\u0301" * 100_000,
    "indented lines": ("\n" + " " * 1000 + "x") * 300,
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["digits", "qwen2"])
def test_traps_give_the_same_ids(kind: str, folders: dict[str, Path]) -> None:
    tokenizer, reference = DocumentTokenizer(_spec(folders[kind]), "tiktoken"), load_reference(_spec(folders[kind]))
    for name, text in TRAPS.items():
        assert tokenizer.encode(text).tolist() == _expected(reference, text), name


def test_a_panic_of_tiktoken_is_a_fallback(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = DocumentTokenizer(_spec(folders["digits"]), "tiktoken")
    encoding = tokenizer._fast._encoding
    monkeypatch.setattr(tokenizer._fast, "_encode_words", encoding.encode_ordinary)  # the call that panics
    with pytest.raises(BaseException, match="StackOverflow") as caught:
        encoding.encode_ordinary(" " * 1_000_000)
    assert not isinstance(caught.value, Exception)
    expected = _expected(load_reference(_spec(folders["digits"])), " " * 1_000_000)
    assert tokenizer.encode(" " * 1_000_000).tolist() == expected
    assert tokenizer.num_fallbacks == 1


def test_tokenizers_is_loaded_at_the_first_fallback_only(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[TokenizerSpec] = []
    monkeypatch.setattr(tokenization, "load_reference", lambda spec: loaded.append(spec) or load_reference(spec))
    tokenizer = DocumentTokenizer(_spec(folders["qwen2"]), "tiktoken")
    tokenizer.encode(PROSE + "<tool>")
    assert (len(loaded), tokenizer.num_fallbacks) == (0, 0)
    tokenizer.encode("e\u0301")
    tokenizer.encode("e\u0301")
    assert (len(loaded), tokenizer.num_fallbacks) == (1, 2)


@pytest.mark.parametrize(
    ("kind", "text"), [("sparse digits", "\x04"), ("sparse digits", "\U00011de3"), ("qwen2", "e\u0301")]
)
def test_what_tiktoken_would_get_wrong_is_refused(folders: dict[str, Path], kind: str, text: str) -> None:
    content = json.loads((folders[kind] / "tokenizer.json").read_bytes())
    with pytest.raises(FallbackNeeded):
        FastEncoder(content, read_text_rules(content), False).encode(f"a {text}b")


@pytest.mark.parametrize("backend", ["tiktoken", "tokenizers"])
def test_tokens_written_out_in_a_text(folders: dict[str, Path], backend: str, tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_file(str(folders["qwen2"] / "tokenizer.json"))
    # The special one hides the other where they overlap, even where it then stays text.
    tokenizer.add_special_tokens(["<x><y"])
    tokenizer.add_tokens([AddedToken("<y>", normalized=False), AddedToken("<y><y>", normalized=False)])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    end, tool = (tokenizer.token_to_id(token) for token in ("<|end|>", "<tool>"))
    text = "a<|end|>b <tool>c<x><y>d<y><y><y>"
    for mode, num_ends in (("plain", 0), ("special", 1)):
        ids = DocumentTokenizer(_spec(tmp_path, mode), backend).encode(text).tolist()
        assert (ids.count(end), ids.count(tool)) == (num_ends, 1)
        assert ids == _expected(load_reference(_spec(tmp_path, mode)), text)


@pytest.mark.parametrize("backend", ["tiktoken", "tokenizers"])
@pytest.mark.parametrize(
    ("template", "eos", "prefix", "suffix"),
    [
        (None, None, 0, 0),
        (None, 0, 0, 1),
        ("<|end|> $A", None, 1, 0),
        ("<|end|> $A <tool>", 0, 1, 2),
        ("$A <|end|>", 0, 0, 1),
    ],
)
def test_what_belongs_around_a_text(
    folders: dict[str, Path], tmp_path: Path, backend: str, template: str, eos: int, prefix: int, suffix: int
) -> None:
    tokenizer = Tokenizer.from_file(str(folders["gpt2"] / "tokenizer.json"))
    if template:
        tokens = [(token, tokenizer.token_to_id(token)) for token in ("<|end|>", "<tool>")]
        parts = [processors.ByteLevel(), processors.TemplateProcessing(single=template, special_tokens=tokens)]
        tokenizer.post_processor = processors.Sequence(parts)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    made = DocumentTokenizer(_spec(tmp_path, eos=eos), backend)
    assert (len(made.prefix), len(made.suffix)) == (prefix, suffix)
    whole = tokenizer.encode("some text").ids
    appended = [] if eos is None or whole[-1] == eos else [eos]
    assert [*made.prefix, *made.encode("some text").tolist(), *made.suffix] == whole + appended


def _set(content: dict, path: str, value: object) -> None:
    *parents, last = [int(key) if key.isdigit() else key for key in path.split(".")]
    for key in parents:
        content = content[key]
    content[last] = value


@pytest.mark.parametrize(
    ("kind", "path", "value", "reason"),
    [
        ("gpt2", "normalizer", {"type": "Lowercase"}, "normalizer Lowercase"),
        ("gpt2", "pre_tokenizer.add_prefix_space", True, "pre-tokenizer ByteLevel"),
        ("digits", "pre_tokenizer.pretokenizers.0.individual_digits", False, "pre-tokenizer Digits, ByteLevel"),
        ("qwen2", "pre_tokenizer.pretokenizers.0.pattern.Regex", r"\s+|\S+", "pre-tokenizer Split, ByteLevel"),
        ("qwen2", "pre_tokenizer.pretokenizers.0.behavior", "Removed", "pre-tokenizer Split, ByteLevel"),
        ("gpt2", "added_tokens.1.lstrip", True, "an added token with one of"),
        ("qwen2", "added_tokens.1.normalized", True, "normalised text"),
        ("gpt2", "added_tokens.1.content", "two words", "several words"),
        ("gpt2", "model.end_of_word_suffix", "</w>", "suffixes"),
        ("gpt2", "post_processor", {"type": "BertProcessing", "sep": ["<|end|>", 0], "cls": ["<|end|>", 0]}, "Bert"),
    ],
)
def test_parts_of_unknown_behaviour_are_left_to_tokenizers(
    folders: dict[str, Path], tmp_path: Path, kind: str, path: str, value: object, reason: str
) -> None:
    content = json.loads((folders[kind] / "tokenizer.json").read_bytes())
    _set(content, path, value)
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    choice = choose_backend(_spec(tmp_path), [PROSE])
    assert choice.name == "tokenizers" and reason in choice.reason
    expected = _expected(load_reference(_spec(tmp_path)), PROSE)
    assert DocumentTokenizer(_spec(tmp_path), choice.name).encode(PROSE).tolist() == expected


def test_dropout_is_off_in_both_backends(folders: dict[str, Path], tmp_path: Path) -> None:
    content = json.loads((folders["gpt2"] / "tokenizer.json").read_bytes())
    _set(content, "model.dropout", 0.5)
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    expected = _expected(load_reference(_spec(folders["gpt2"])), PROSE)
    assert Tokenizer.from_file(str(tmp_path / "tokenizer.json")).encode(PROSE).ids != expected  # it would draw
    assert choose_backend(_spec(tmp_path), [PROSE]).name == "tiktoken"
    assert _expected(load_reference(_spec(tmp_path)), PROSE) == expected
    for backend in ("tiktoken", "tokenizers"):
        assert DocumentTokenizer(_spec(tmp_path), backend).encode(PROSE).tolist() == expected


@pytest.mark.parametrize("change", ["swap", "drop", "swap ids"])
def test_merges_that_tiktoken_would_not_follow_are_found(folders: dict[str, Path], tmp_path: Path, change: str) -> None:
    content = json.loads((folders["gpt2"] / "tokenizer.json").read_bytes())
    merges, vocabulary = content["model"]["merges"], content["model"]["vocab"]
    if change == "swap":
        merges[10], merges[600] = merges[600], merges[10]
    elif change == "drop":
        del merges[600]
    else:
        first, second = ("".join(merge) for merge in (merges[10], merges[600]))
        vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    choice = choose_backend(_spec(tmp_path), [])
    assert choice.name == "tokenizers" and "merges" in choice.reason


def test_samples_decide_too_and_no_more_than_needed_is_drawn(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = 0

    def samples() -> Iterator[str]:
        nonlocal drawn
        for drawn in range(1, 10_001):  # noqa: B007
            yield "quokka " * 1000

    assert choose_backend(_spec(folders["gpt2"]), samples()).name == "tiktoken"
    assert drawn < 100
    correct = FastEncoder._encode_words
    monkeypatch.setattr(FastEncoder, "_encode_words", lambda self, text: correct(self, text.replace("kka", "akk")))
    assert choose_backend(_spec(folders["gpt2"]), []).name == "tiktoken"
    choice = choose_backend(_spec(folders["gpt2"]), samples())
    assert choice.name == "tokenizers" and "differ on 'quokka" in choice.reason


CHARACTERS = [chr(i) for i in range(sys.maxunicode + 1) if not 0xD800 <= i < 0xE000]
# A letter, number or white space is one word with its kind, anything else with the exclamation mark; the last two are
# about the blank before a word and contractions.
OTHER, NEIGHBOURS = "{}!", ("a{}", "1{}", "\t{}", " {}", "'{}x")


class WordComparison:
    """Cuts texts of probes into words by both libraries."""

    def __init__(self, tokenizer: Tokenizer, pattern: str) -> None:
        self._cut, self._pattern = tokenizer.pre_tokenizer.pre_tokenize_str, pattern
        self._alphabet = str.maketrans(_byte_alphabet())

    def others(self, characters: list[str]) -> set[str]:
        """The characters that are one word with an exclamation mark for tiktoken, that is for both."""
        words = self._words([OTHER.format(c) for c in characters])[0]
        return {word[0] for word in words if len(word) == 2 and word[1] == "!"}

    def disputed(self, characters: list[str], neighbours: tuple[str, ...]) -> list[str]:
        """The characters near which the words differ."""
        ours, theirs = self._words([neighbour.format(c) for c in characters for neighbour in neighbours])
        if ours == theirs or len(characters) == 1:
            return [] if ours == theirs else characters
        middle = len(characters) // 2
        halves = (characters[:middle], characters[middle:])
        return [c for half in halves for c in self.disputed(half, neighbours)]

    def _words(self, probes: list[str]) -> tuple[list[str], list[str]]:
        """What tiktoken and `tokenizers` cut; a word that is no probe comes out in bytes from both."""
        ranks = {bytes([byte]): byte for byte in range(256)}
        for probe in probes:
            ranks.setdefault(probe.encode(), len(ranks))
        special = {"\0\0": 1 << 31}
        encoding = tiktoken.Encoding("words", pat_str=self._pattern, mergeable_ranks=ranks, special_tokens=special)
        text = " x".join(probes)
        spelling = {token_id: token.decode("utf-8", "backslashreplace") for token, token_id in ranks.items()}
        words = (word.translate(self._alphabet).encode("latin-1") for word, _ in self._cut(text))
        theirs = (i for word in words for i in ([ranks[word]] if word in ranks else word))
        return [spelling[i] for i in encoding.encode_ordinary(text)], [spelling[i] for i in theirs]


@pytest.mark.slow
@pytest.mark.parametrize("kind", [pytest.param("digits", marks=pytest.mark.drill), "qwen2"])
def test_all_characters_are_cut_alike_but_for_those_that_are_refused(kind: str, folders: dict[str, Path]) -> None:
    content = json.loads((folders[kind] / "tokenizer.json").read_bytes())
    rules = read_text_rules(content)
    comparison = WordComparison(Tokenizer.from_file(str(folders[kind] / "tokenizer.json")), rules.pattern)
    disputed, num_others = set(), 0
    for start in range(0, len(CHARACTERS), 8192):
        batch = CHARACTERS[start : start + 8192]
        disputed |= set(comparison.disputed(batch, (OTHER,)))
        others = comparison.others(batch)
        num_others += len(others)
        # What is "other" for both libraries has no other kind to look into.
        if rest := [c for c in batch if c not in others]:
            disputed |= set(comparison.disputed(rest, NEIGHBOURS))
    assert 900_000 < num_others < 1_000_000
    encoder = FastEncoder(content, rules, False)
    for character in disputed:
        with pytest.raises(FallbackNeeded):
            encoder.encode(character)
    assert len(disputed) < 100


@pytest.mark.slow
def test_what_python_calls_nfc_is_not_changed_by_tokenizers() -> None:
    nfc = normalizers.NFC()
    marks = [c for c in CHARACTERS if unicodedata.combining(c)]
    pairs = [d for c in CHARACTERS if len(d := unicodedata.normalize("NFD", c)) > 1]
    texts = [*CHARACTERS, *pairs, *(pair[0] + mark + pair[1:] for pair in pairs[:1500] for mark in marks[::40])]
    texts += [f"e{a}{b}" for a in marks for b in marks[::7]]
    unchanged = [text for text in texts if unicodedata.is_normalized("NFC", text)]
    assert len(unchanged) > 1_000_000
    for start in range(0, len(unchanged), 10_000):
        joined = "\n".join(unchanged[start : start + 10_000])
        assert nfc.normalize_str(joined) == joined
