"""Needles: what prompts are made of, which needles are evicted, how answers are scored, and the numbers by hand."""

import re
from itertools import product

import numpy as np
import pytest
import torch
from transformers import LlamaConfig

from pipeline.attention.window import Document, WindowSpec
from pipeline.config import ConfigError, EvalConfig, NeedlesConfig
from pipeline.errors import UserError
from pipeline.evaluation.haystack import Haystack, make_haystack, read_haystack
from pipeline.evaluation.needles.answers import mentions
from pipeline.evaluation.needles.documents import EncodedAnswer, NeedlePrompt, build_prompt, encode_texts
from pipeline.evaluation.needles.suite import NeedlesSuite
from pipeline.evaluation.needles.summary import summarise
from pipeline.evaluation.needles.tasks import DRAWS, NeedleTexts, draw_texts, make_generator
from pipeline.evaluation.reader import Reader
from pipeline.evaluation.suite import EvaluationInputs
from pipeline.model.files import resolve_model
from pipeline.model.loading import load_model
from tests.tiny_models import TINY_WINDOW

TEXT = "".join(f"Line {i} of the text says that {i} is followed by {i + 1}. It ends here.\n" for i in range(400))
SINKS = 20
STRETCH = 4.302653 / 1.959964 * 1.5**0.5
"""Of an interval of three prompts: Student's t of 2 degrees of freedom over the normal quantile."""


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(TEXT)
    return path


@pytest.fixture(scope="module")
def haystack(text, tokenizer):
    return Haystack(read_haystack(text, tokenizer), tokenizer)


@pytest.fixture
def make_suite(folder, text, tokenizer):
    def make(variants=("full", "window", "memory_off", "ahn"), **needles):
        config = EvalConfig(folder / "adapter", folder / "out", haystack=text, needles=NeedlesConfig(**needles))
        files = resolve_model(config.model, None)
        tokens = read_haystack(text, tokenizer)
        return NeedlesSuite(EvaluationInputs(config, files, TINY_WINDOW, variants, tokenizer, tokens, None))

    return make


def make_prompt(haystack, tokenizer, task, length, depth, example=0):
    texts = draw_texts(task, length, depth, example, seed=3)
    encoded = encode_texts(tokenizer, texts)
    generator = make_generator(task, length, depth, example, seed=3, stream=2)
    return texts, encoded, build_prompt(haystack, encoded, texts.depths, length, SINKS, generator)


@pytest.mark.parametrize("task", DRAWS)
@pytest.mark.parametrize("depth", [0.0, 0.4, 1.0])
def test_a_prompt_is_text_with_its_sentences_at_their_depths(haystack, tokenizer, task, depth):
    texts, encoded, prompt = make_prompt(haystack, tokenizer, task, 900, depth)
    assert len(prompt.tokens) == 900 and prompt.tokens[:1] == encoded.beginning == [tokenizer.bos_token_id]
    asked = encoded.asked
    assert tokenizer.decode(prompt.tokens).endswith(texts.question) and len(asked.spans) == len(texts.answers)
    assert prompt.places[-1] == (900 - len(asked.question), 900)
    for (start, end), sentence in zip(prompt.places[:-1], texts.sentences, strict=True):
        assert tokenizer.decode(prompt.tokens[start:end]) == f"\n{sentence}\n"
    rest = tokenizer.decode(prompt.tokens[1 : -len(asked.question)])
    for sentence in texts.sentences:
        assert rest.count(sentence) == 1
        rest = rest.replace(f"\n{sentence}\n", "")
    assert rest in TEXT
    room = 900 - SINKS - len(asked.question) - sum(map(len, encoded.sentences))
    before = prompt.places[0][0] - SINKS
    others = [len(s) for s, d in zip(encoded.sentences, texts.depths, strict=True) if d < depth]
    assert before >= 0 and abs(before - sum(others) - depth * room) <= (room // 8 if depth < 1 else 0)
    if depth == 1:
        assert prompt.places[len(asked.spans) - 1][1] == 900 - len(asked.question)
    else:
        assert tokenizer.decode(prompt.tokens[: prompt.places[0][0]]).endswith((".", "\n"))


@pytest.mark.parametrize("task", DRAWS)
def test_answers_are_what_the_sentences_say_in_as_many_spans(tokenizer, task):
    texts = draw_texts(task, 900, 0.5, 0, seed=3)
    asked = encode_texts(tokenizer, texts).asked
    for answer, sentence, span in zip(texts.answers, texts.sentences, asked.spans, strict=False):
        assert (
            mentions(sentence, answer)
            and tokenizer.decode(asked.answer[span]).removeprefix(texts.separator) == f" {answer}"
        )
    assert tokenizer.decode(asked.answer) == texts.separator.join(f" {answer}" for answer in texts.answers)
    assert len(set(texts.answers)) == len(texts.answers) == len(asked.spans)


def test_prompts_are_a_function_of_their_seed_and_differ_between_examples(haystack, tokenizer):
    first, again, other = (make_prompt(haystack, tokenizer, "multi_key", 700, 0.5, n)[2].tokens for n in (0, 0, 1))
    assert first == again != other
    for changed in ({"length": 701}, {"depth": 0.25}, {"example": 1}, {"seed": 4}):
        at = {"task": "single", "length": 700, "depth": 0.5, "example": 0, "seed": 3}
        assert draw_texts(**at).answers != draw_texts(**(at | changed)).answers


def test_prompts_begin_anywhere_in_the_text_whatever_their_task_and_depth(make_suite, tokenizer):
    suite = make_suite(lengths=[900], depths=[0.0, 0.5], examples=2)
    prompts = [tokenizer.decode(suite._build(cell, *suite._encode(cell)).tokens) for cell in suite._cells.values()]
    first_lines = {int(re.search(r"Line (\d+) of", prompt)[1]) for prompt in prompts}
    assert len(prompts) == 20 and len(first_lines) >= 18 and max(first_lines) - min(first_lines) > 200


@pytest.mark.parametrize("needed", [30, 100, 101, 200])
def test_excerpts_may_begin_anywhere_in_the_text_that_comes_with_python(folder, tokenizer, needed):
    config, files = EvalConfig(folder / "adapter", folder / "out"), resolve_model(folder / "adapter", None)
    inputs = EvaluationInputs(config, files, TINY_WINDOW, ("full",), tokenizer, [*range(100)], None)
    assert len(make_haystack(inputs, needed, "--needles.lengths")) - needed >= 100


@pytest.mark.parametrize("task", DRAWS)
def test_an_evicted_answer_cannot_be_read_in_the_window_or_the_sinks(haystack, tokenizer, task):
    """Its own sentence may be evicted while another one that names it is visible: the next variable's assignment."""
    num_evicted = num_named_elsewhere = 0
    window_size = 280  # more than the question takes
    for length, depth, example in product((400, 620, 900, 1500), (0.0, 0.25, 0.5, 0.75, 1.0), range(8)):
        texts, _, prompt = make_prompt(haystack, tokenizer, task, length, depth, example)
        window = WindowSpec(SINKS, window_size)
        visible = [tokenizer.decode(part) for part in (prompt.tokens[:SINKS], prompt.tokens[-window_size:])]
        for i, (answer, is_evicted) in enumerate(zip(texts.answers, prompt.evicted(window), strict=True)):
            num_evicted += is_evicted
            num_named_elsewhere += not is_evicted and prompt.places[i][1] <= length - window_size
            assert not is_evicted or not any(mentions(part, answer) for part in visible)
            assert is_evicted or prompt.places[i][1] > length - window_size or mentions(visible[1], answer)
    assert num_evicted > 20 and (num_named_elsewhere > 5) == (task == "variable_tracking")


def test_an_answer_that_the_question_names_is_not_evicted(haystack, tokenizer):
    sentences = ("The number of the house is 12345.", "The number of the garden is 67890.")
    texts = NeedleTexts(sentences, (0.0, 0.0), "Is it 67890 or not? It is", ("12345", "67890"))
    encoded = encode_texts(tokenizer, texts)
    prompt = build_prompt(haystack, encoded, texts.depths, 900, SINKS, np.random.default_rng(0))
    assert prompt.named_by == ((0,), (1, 2)) and prompt.evicted(WindowSpec(SINKS, 100)) == (True, False)


def test_an_answer_is_evicted_when_no_token_of_what_names_it_is_in_the_window_or_a_sink():
    window, length = WindowSpec(num_sink_tokens=4, window_size=12), 50
    out, last_in, first_in = (20, 38), (20, 39), (38, 41)  # the last query, at 49, sees 38 .. 49
    sink, after_sinks, at_end = (3, 6), (4, 6), (45, 50)
    places = (out, last_in, first_in, sink, after_sinks, at_end)
    named_by = (*((number,) for number in range(6)), (0, 4), (0, 2), (4, 5))
    prompt = NeedlePrompt([0] * length, places, named_by, EncodedAnswer([0], [0], (slice(0, 1),)))
    assert prompt.evicted(window) == (True, False, False, False, True, False, True, False, False)


@pytest.mark.parametrize(
    ("text", "value", "found"),
    [
        (" 12345.", "12345", True),
        (" the number 12345", "12345", True),
        (" 123456", "12345", False),
        (" 112345", "12345", False),
        (" KX, QR and ZB", "QR", True),
        (" KXQR", "QR", False),
        ("", "QR", False),
    ],
)
def test_an_answer_is_recalled_as_a_whole_word(text, value, found):
    assert mentions(text, value) is found


@pytest.mark.parametrize("variant", ["full", "window", "ahn"])
@torch.no_grad()
def test_a_record_is_what_whole_forwards_say(folder, tokenizer, make_suite, variant):
    model = load_model(str(folder / "adapter"), dtype=torch.float32).double().eval()
    suite = make_suite(tasks=["multi_value"], lengths=[400], depths=[0.5])
    (unit,) = [unit for unit in suite.units() if unit.key.endswith(f"/{variant}")]
    assert unit.key == f"multi_value/len400/depth0.5/0/{variant}" and unit.variants == (variant,)
    record = suite.measure(unit, {variant: Reader(model, variant, TINY_WINDOW, 37, 4.0)})
    texts = draw_texts("multi_value", 400, 0.5, 0, seed=0)
    encoded = encode_texts(tokenizer, texts)
    prompt = build_prompt(
        suite._haystack, encoded, texts.depths, 400, 4, make_generator("multi_value", 400, 0.5, 0, 0, 2)
    )

    def log_probs(tokens):
        scope = Document(0, 0, len(tokens), None if variant == "full" else TINY_WINDOW)
        return model(
            torch.tensor([tokens]), use_cache=False, documents=(scope,), use_memory=variant == "ahn"
        ).logits[0].log_softmax(-1)  # fmt: skip

    answer, written = prompt.asked.answer, list(prompt.tokens)
    found = log_probs([*prompt.tokens, *answer])[399:-1]
    right, is_top = found[torch.arange(len(answer)), answer], found.argmax(-1) == torch.tensor(answer)
    for needle, value, span in zip(record["needles"], texts.answers, prompt.asked.spans, strict=True):
        assert needle["answer"] == value and needle["evicted"]
        assert needle["log_prob"] == pytest.approx(float(right[span].sum()), abs=1e-9)
        assert (needle["tokens"], needle["top1"]) == (len(right[span]), int(is_top[span].sum()))
    while len(written) < 400 + len(answer) + 3 and (following := int(log_probs(written)[-1].argmax())) != 1:
        written.append(following)
    assert record["text"] == tokenizer.decode(written[400:])
    assert record["variant"] == variant and record["depth"] == 0.5


def test_units_leave_out_memory_off_and_are_one_a_prompt_and_variant(make_suite):
    suite = make_suite(depths=[0.0, 1.0], examples=2)
    keys = [unit.key for unit in suite.units()]
    assert len(set(keys)) == len(keys) == 5 * 3 * 2 * 2 * 3
    assert {unit.variants[0] for unit in suite.units()} == {"full", "window", "ahn"}


def test_lengths_and_text_must_suffice(make_suite, tokenizer):
    with pytest.raises(UserError, match=r"--needles.lengths 50: .* need 277"):
        make_suite(lengths=[50])
    with pytest.raises(UserError, match=r"--haystack .*text.txt has [\d,]+ tokens, --needles.lengths needs 99,000"):
        make_suite(lengths=[99_000])
    with pytest.raises(ConfigError, match=r"--needles.depths.*\[1.5\]"):
        NeedlesConfig(depths=[1.5])
    with pytest.raises(ConfigError, match=r"--needles.lengths: .*twice"):
        NeedlesConfig(lengths=[300, 300])


@pytest.mark.parametrize("content", [None, b"\xff\xfe text"])
def test_a_haystack_that_cannot_be_read_is_named(tmp_path, tokenizer, content):
    path = tmp_path / "hay.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=r"--haystack .*hay.txt cannot be read"):
        read_haystack(path, tokenizer)


def make_record(variant, needles, task="single", depth=0.5):
    names = ("evicted", "recalled", "log_prob", "tokens", "top1")
    found = [{"answer": "x", **dict(zip(names, needle, strict=True))} for needle in needles]
    return {"task": task, "length": 400, "depth": depth, "example": 0, "variant": variant, "needles": found}


def make_records():
    """Three prompts; of the second's needles, one is in the window."""
    return [
        make_record("full", [(True, True, -1.0, 2, 2)]),
        make_record("full", [(True, True, -2.0, 4, 3), (False, True, -0.5, 1, 1)], "passkey", 1.0),
        make_record("full", [(True, True, -3.0, 4, 4)]),
        make_record("window", [(True, False, -9.0, 2, 0)]),
        make_record("window", [(True, False, -6.0, 4, 1), (False, True, -0.5, 1, 1)], "passkey", 1.0),
        make_record("window", [(True, False, -10.0, 4, 0)]),
        make_record("ahn", [(True, True, -5.0, 2, 1)]),
        make_record("ahn", [(True, False, -4.0, 4, 1), (False, False, -2.5, 1, 0)], "passkey", 1.0),
        make_record("ahn", [(True, False, -6.0, 4, 2)]),
    ]


def test_the_summary_counts_evicted_needles_apart():
    summary = summarise(make_records(), ("full", "window", "ahn"), ["single", "passkey"])
    ahn = summary["variants"]["ahn"]
    assert (ahn["evicted"]["num_needles"], ahn["in_window"]["num_needles"]) == (3, 1)
    assert (ahn["evicted"]["units"], ahn["in_window"]["units"]) == (3, 1)
    assert (ahn["evicted"]["recall"], ahn["in_window"]["recall"]) == (1 / 3, 0.0)
    assert ahn["evicted"]["log_prob"] == pytest.approx(-15 / 10) and ahn["in_window"]["log_prob"] == -2.5
    assert ahn["evicted"]["top1"] == pytest.approx(4 / 10)
    bounds = [-1.5 - STRETCH * 1.0, -1.5 + STRETCH * 0.5]  # thrice the first prompt, thrice the second
    assert ahn["evicted"]["log_prob_ci95"] == pytest.approx(bounds) and ahn["in_window"]["recall_ci95"] is None
    assert ahn["evicted"]["recall_ci95"] == [0.0, 1.0]
    none_of_three = summary["variants"]["window"]["evicted"]["recall_ci95"]
    assert none_of_three == pytest.approx([0.0, 1 - 0.025 ** (1 / 3)])
    assert ahn["evicted"]["tasks"]["passkey"]["log_prob"] == -1.0
    assert ahn["in_window"]["tasks"]["single"] == {
        "num_needles": 0, "units": 0, "recall": None, "recall_ci95": None, "log_prob": None, "log_prob_ci95": None,
        "top1": None, "top1_ci95": None,
    }  # fmt: skip
    found = summary["recovered"]
    assert found.keys() == {"ahn"} and found["ahn"]["recall"] == 1 / 3
    share = (-15 + 25) / (-6 + 25)
    bounds = [share - STRETCH * (share - 1 / 2), share + STRETCH * (4 / 7 - share)]
    assert found["ahn"]["log_prob"] == pytest.approx(share)
    assert found["ahn"]["log_prob_ci95"] == pytest.approx(bounds)


def test_a_share_that_all_prompts_recover_alike_has_no_interval():
    log_probs = {"full": -1.0, "window": -9.0, "ahn": -5.0}
    records = [make_record(v, [(True, v == "full", log_probs[v], 2, 0)]) for v in log_probs for _ in range(3)]
    found = summarise(records, tuple(log_probs), ["single"])["recovered"]["ahn"]
    assert found == {"recall": 0.0, "recall_ci95": None, "log_prob": 0.5, "log_prob_ci95": None}


def test_nothing_is_recovered_where_nothing_was_lost():
    records = make_records()[3:]
    alike = [{**r, "variant": "full"} for r in records[:3]]
    found = summarise([*alike, *records], ("full", "window", "ahn"), ["single", "passkey"])["recovered"]["ahn"]
    assert found == {"recall": None, "recall_ci95": None, "log_prob": None, "log_prob_ci95": None}
    assert summarise(records, ("window", "ahn"), ["single", "passkey"])["recovered"] == {}


def test_nothing_is_recovered_where_full_attention_is_worse_than_the_window():
    log_probs = {"full": -9.0, "window": -2.0, "ahn": -5.0}
    records = [make_record(v, [(True, v == "window", log_probs[v] - i, 2, 0)]) for v in log_probs for i in range(3)]
    found = summarise(records, tuple(log_probs), ["single"])["recovered"]["ahn"]
    assert found == {"recall": None, "recall_ci95": None, "log_prob": None, "log_prob_ci95": None}


def test_prompts_without_evicted_needles_say_nothing_of_evicted_ones():
    records = make_records()
    others = [make_record(v, [(False, True, -1.0, 2, 2)]) for v in ("full", "window", "ahn") for _ in range(5)]
    variants, tasks = ("full", "window", "ahn"), ["single", "passkey"]
    few, many = (summarise(of, variants, tasks) for of in (records, [*records, *others]))
    assert many["recovered"] == few["recovered"]
    assert all(many["variants"][v]["evicted"] == few["variants"][v]["evicted"] for v in variants)


def test_the_section_has_the_numbers_the_map_and_what_was_published(make_suite):
    suite = make_suite(("full", "window", "ahn"), tasks=["single", "passkey"], lengths=[400, 2000], depths=[0.5, 1.0])
    records = dict(enumerate(make_records()))
    summary = suite.summarise(records)
    (section,) = suite.sections(summary, records)
    assert summary["lengths_beyond_trained_positions"] == [2000] and "1,024 positions: 2,000" in section.note
    ahn = section.tables[0].rows[2]
    assert ahn[1:3] == ["33.3% [0.0%, 100.0%]", "-1.500 [-4.189, -0.156]"] and ahn[-1] == "33.3% [-56.3%, 212.6%]"
    evicted, in_window, of_tasks = section.tables[:3]
    assert evicted.caption == "Needles evicted: 3 (prompts: 3)"
    assert in_window.caption == "Needles in the window: 1 (prompts: 1)"
    assert [row[2:4] for row in of_tasks.rows] == [["2", "2"]] * 3 + [["1", "1"]] * 3
    assert "arXiv 2510.07318" in section.tables[-1].caption and section.pictures[0].png.startswith(b"\x89PNG")
    assert [tile.value for tile in section.tiles] == ["33.3% [0.0%, 100.0%]", "52.6% [45.6%, 64.8%]"]
    summary["recovered"]["ahn"]["log_prob_ci95"] = None  # of other prompts, the window may lose nothing
    assert len(suite.sections(summary, records)[0].tiles) == 1


def test_a_base_without_a_memory_has_its_section_too(make_suite):
    suite = make_suite(("window",), tasks=["single", "passkey"], lengths=[400], depths=[0.5, 1.0])
    records = dict(enumerate(make_records()[3:6]))
    (section,) = suite.sections(suite.summarise(records), records)
    assert [row[0] for row in section.tables[0].rows] == ["sinks + window"] and not section.tiles


def test_positions_that_yarn_in_the_config_extends_are_the_bases_own(make_suite, monkeypatch):
    yarn = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 1024}
    config = LlamaConfig(rope_parameters=yarn, max_position_embeddings=1024)
    monkeypatch.setattr("pipeline.evaluation.needles.suite.load_config", lambda _: config)
    suite = make_suite(("full", "window", "ahn"), tasks=["single", "passkey"], lengths=[400, 2000], depths=[0.5])
    assert suite.summarise(dict(enumerate(make_records())))["lengths_beyond_trained_positions"] == []
