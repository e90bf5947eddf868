"""Absorbed documents: facts in a text, questions after more of it, the control of the memory, the numbers by hand."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from pipeline.attention.window import Document, WindowSpec
from pipeline.config import AbsorbedConfig, ConfigError, EvalConfig
from pipeline.errors import UserError
from pipeline.evaluation.absorbed.suite import AbsorbedSuite
from pipeline.evaluation.absorbed.summary import summarise
from pipeline.evaluation.haystack import read_haystack
from pipeline.evaluation.reader import Reader
from pipeline.evaluation.suite import EvaluationInputs
from pipeline.model.files import resolve_model
from pipeline.model.loading import load_model, set_window
from tests.tiny_models import TINY_WINDOW, make_adapter

TEXT = "".join(f"Line {i} of the text says that {i} is followed by {i + 1}. It ends here.\n" for i in range(60))
STRETCH = 4.302653 / 1.959964 * 1.5**0.5
"""Of an interval of three documents: Student's t of 2 degrees of freedom over the normal quantile."""


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(TEXT)
    return path


RETAINED = 24
VARIANTS = ("ahn", f"retained{RETAINED}", f"retained{RETAINED}_ahn")


@pytest.fixture(scope="module")
def model(folder, tmp_path_factory):
    """Its memories forget slowly, and old tokens are retained, so that what they hold still shows after a question of
    several windows."""
    window = replace(TINY_WINDOW, num_retained_tokens=RETAINED)
    adapter = make_adapter(tmp_path_factory.mktemp("scored") / "adapter", folder / "base", window)
    model = load_model(str(adapter), dtype=torch.float32).double().eval()
    set_window(model, TINY_WINDOW)
    with torch.no_grad():
        for layer in model.get_decoder().layers:
            layer.ahn.fn.A_log.fill_(-6.0)
            layer.ahn.retention.position_weight.fill_(-0.5)
    return model


@pytest.fixture
def make_suite(folder, text, tokenizer):
    def make(variants=("full", "window", "memory_off", "ahn"), suite=AbsorbedSuite, window=TINY_WINDOW, **absorbed):
        config = EvalConfig(folder / "adapter", folder / "out", haystack=text, absorbed=AbsorbedConfig(**absorbed))
        tokens, files = read_haystack(text, tokenizer), resolve_model(config.model, None)
        return suite(EvaluationInputs(config, files, window, variants, tokenizer, tokens, None))

    return make


@pytest.mark.parametrize("window_size", [12, 200])
def test_a_document_is_a_window_of_text_with_facts_past_the_sinks(make_suite, tokenizer, window_size):
    window = WindowSpec(30, window_size)
    suite = make_suite(window=window, facts=3, windows=[2, 1])
    document = suite.document(0)
    num_facts_tokens = sum(end - start for start, end in document.places)
    assert len(document.tokens) == max(window.lossless_budget, 30 + num_facts_tokens)
    assert len(document.filler) == 2 * window_size and document.places[0][0] >= 30
    rest = tokenizer.decode([*document.tokens[1:], *document.filler])
    for (start, end), question in zip(document.places, document.questions, strict=True):
        fact = tokenizer.decode(document.tokens[start:end])
        asked, answer = tokenizer.decode(question.question), tokenizer.decode(question.answer)
        name = asked.split("of ")[1].split("?")[0]
        assert fact == f"\nThe code of {name} is{answer}.\n" and asked.endswith(f"The code of {name} is")
        rest = rest.replace(fact, "")
    assert rest in TEXT
    shortest = min(len(question.question) for question in document.questions)
    first_query = len(document.tokens) + window_size + shortest - 1  # which gives an answer after one window
    facts = np.concatenate([np.arange(*place) for place in document.places])
    assert not window.visible(np.array(first_query), facts).any()
    assert suite.document(0) == document != suite.document(1)


@pytest.mark.parametrize("variant", ["full", "ahn"])
@torch.no_grad()
def test_questions_go_on_from_one_reading_as_whole_forwards_do(model, make_suite, variant):
    suite = make_suite(documents=1, facts=2, windows=[1, 4])
    (unit,) = [unit for unit in suite.units() if unit.variants == (variant,)]
    record = suite.measure(unit, {variant: Reader(model, variant, TINY_WINDOW, 29, 4.0)})
    document = suite.document(0)
    assert [found["windows"] for found in record["distances"]] == [1, 4]
    for found in record["distances"]:
        context = [*document.tokens, *document.filler[: found["windows"] * 12]]
        for asked, question in zip(found["questions"], document.questions, strict=True):
            tokens = torch.tensor([*context, *question.question, *question.answer])
            scope = Document(0, 0, len(tokens), None if variant == "full" else TINY_WINDOW)
            logits = model(tokens[None], use_cache=False, documents=(scope,), use_memory=variant == "ahn").logits[0]
            count = len(question.answer)
            log_probs, right = logits[-count - 1 : -1].log_softmax(-1), tokens[-count:]
            is_top = log_probs.argmax(-1) == right
            assert asked["log_prob"] == pytest.approx(float(log_probs[torch.arange(count), right].sum()), abs=1e-9)
            assert (asked["tokens"], asked["top1"]) == (count, int(is_top.sum()))
            assert asked["recalled"] == bool(is_top.all())
        assert ("foreign" in found) == (variant == "ahn")


class OneDocument(AbsorbedSuite):
    """Every document is the same, so another one's memory is one's own."""

    def document(self, number):
        return super().document(0)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_control_takes_the_memory_of_another_document(model, make_suite, variant):
    readers = {variant: Reader(model, variant, TINY_WINDOW, 64, 4.0)}
    for suite, is_own in ((AbsorbedSuite, False), (OneDocument, True)):
        suite = make_suite((variant,), suite, documents=1, facts=2, windows=[1, 2])
        for found in suite.measure(suite.units()[0], readers)["distances"]:
            own, foreign = ([asked["log_prob"] for asked in found[name]] for name in ("questions", "foreign"))
            differences = [abs(a - b) for a, b in zip(own, foreign, strict=True)]
            assert max(differences) < 1e-4 if is_own else min(differences) > 1e-3


class OtherFact(AbsorbedSuite):
    """The first document's first fact has another code, in as many tokens."""

    def document(self, number):
        document, (start, end) = super().document(number), super().document(0).places[0]
        tokens = list(document.tokens)
        if number == 0:
            tokens[start:end] = [*tokens[start : end - 4], *reversed(tokens[end - 4 : end - 1]), tokens[end - 1]]
        return replace(document, tokens=tokens)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_control_knows_nothing_of_the_document_beyond_its_windows(model, make_suite, variant):
    readers = {variant: Reader(model, variant, TINY_WINDOW, 64, 4.0)}
    found = {"questions": [], "foreign": []}
    for suite in (AbsorbedSuite, OtherFact):
        suite = make_suite(
            (variant,), suite, documents=1, facts=1, windows=[1, 6]
        )  # two layers' windows reach 24 tokens
        (_, far) = suite.measure(suite.units()[0], readers)["distances"]
        for name, of_suites in found.items():
            of_suites.append(far[name][0]["log_prob"])
    (own, own_of_other), (foreign, foreign_of_other) = found.values()
    assert abs(own - own_of_other) > 1e-6 and foreign == pytest.approx(foreign_of_other, abs=1e-9)


@pytest.mark.parametrize("window", [WindowSpec(0, 1), WindowSpec(3, 2)])
def test_the_control_reads_as_far_where_the_other_document_is_shorter(folder, make_suite, window):
    """Of small windows documents are as long as their facts are in tokens."""
    model = load_model(str(folder / "adapter"), dtype=torch.float32).eval()
    set_window(model, window)
    readers = {"ahn": Reader(model, "ahn", window, 64, 4.0)}
    suite = make_suite(("ahn",), documents=12, facts=4, windows=[1], window=window)
    lengths = [len(suite.document(number).tokens) for number in range(13)]
    drops = [number for number in range(12) if lengths[number] - lengths[number + 1] > window.window_size]
    assert drops, "no document is followed by one that is so much shorter"
    for unit in (suite.units()[number] for number in drops[:2]):
        (found,) = suite.measure(unit, readers)["distances"]
        assert len(found["foreign"]) == 4 and all(np.isfinite(asked["log_prob"]) for asked in found["foreign"])


def make_records(variants=("full", "window", "ahn")):
    """Three documents of one fact each, at two distances; the window loses more of the later ones."""
    log_probs = {"full": [-1.0, -2.0], "window": [-9.0, -10.0], "ahn": [-5.0, -9.0], "foreign": [-8.0, -10.0]}

    def ask(variant, distance, number):
        is_right = variant == "full" or (variant, distance, number) == ("ahn", 0, 0)
        log_prob = log_probs[variant][distance] - number * (2 if variant == "window" else 1)
        return [{"recalled": is_right, "log_prob": log_prob, "tokens": 2, "top1": 2 * is_right}]

    records = {}
    for variant in variants:
        for number in range(3):
            distances = [{"windows": w, "questions": ask(variant, i, number)} for i, w in enumerate([1, 4])]
            if variant == "ahn":
                distances = [{**at, "foreign": ask("foreign", i, number)} for i, at in enumerate(distances)]
            records[f"{number}/{variant}"] = {"document": number, "variant": variant, "distances": distances}
    return records


def test_the_summary_has_each_distance_and_what_is_recovered():
    summary = summarise(list(make_records().values()), ("full", "window", "ahn"), [1, 4])
    assert list(summary["variants"]) == ["full", "window", "ahn", "foreign"]
    near, far = summary["variants"]["ahn"]
    assert (near["windows"], near["recall"], near["log_prob"], near["top1"]) == (1, 1 / 3, -3.0, 1 / 3)
    assert (far["windows"], far["recall"], far["log_prob"], far["units"]) == (4, 0.0, -5.0, 3)
    bounds = [-3 - STRETCH * 0.5, -3 + STRETCH * 0.5]  # thrice the last document, thrice the first
    assert near["log_prob_ci95"] == pytest.approx(bounds) and near["recall_ci95"] == [0.0, 1.0]
    assert far["recall_ci95"] == pytest.approx([0.0, 1 - 0.025 ** (1 / 3)])
    ahn, foreign = summary["recovered"]["ahn"], summary["recovered"]["foreign"]
    assert [at["log_prob"] for at in ahn] == pytest.approx([15 / 27, 6 / 27])
    assert [at["log_prob"] for at in foreign] == pytest.approx([6 / 27, 3 / 27])
    assert [at["recall"] for at in ahn] == [1 / 3, 0.0] and ahn[1]["recall_ci95"] is None
    assert summary["recovered"].keys() == {"ahn", "foreign"}
    assert [at["difference"] for at in summary["controls"]["ahn"]] == [
        1.5,
        0.5,
    ]  # nats per token, of each document alike
    assert [at["difference_ci95"] for at in summary["controls"]["ahn"]] == [None, None]


@pytest.mark.parametrize("variants", [("full", "window", "ahn"), ("window",)])
def test_the_section_has_a_row_a_variant_and_one_for_the_control(make_suite, variants):
    suite, records = make_suite(variants, windows=[1, 4]), make_records(variants)
    (section,) = suite.sections(suite.summarise(records), records)
    assert section.pictures[0].png.startswith(b"\x89PNG") and section.tables[0].header[1:] == ["1 window", "4 windows"]
    rows = [row[0] for row in section.tables[0].rows]
    if "ahn" in variants:
        assert rows[-2:] == ["sinks + window + AHN", "AHN, another document's memory"]
        assert section.tables[1].rows[0][1:] == ["55.6% [40.6%, 67.5%]", "22.2% [-3.9%, 43.1%]"]
        assert section.tables[2].rows == [["sinks + window + AHN", "+1.500", "+0.500"]]
        assert [tile.value[:5] for tile in section.tiles] == ["55.6%", "22.2%"]
        assert "after 4 windows; with another document's memory 11.1% [" in section.tiles[1].caption
        summary = suite.summarise(records)
        summary["recovered"]["ahn"][0]["log_prob_ci95"] = None  # of other documents, the window may lose nothing
        assert [tile.value[:5] for tile in suite.sections(summary, records)[0].tiles] == ["22.2%"]
    else:
        assert rows == ["sinks + window"] and len(section.tables) == 3


def test_facts_and_text_must_suffice(make_suite):
    with pytest.raises(UserError, match=r"--absorbed.facts 500: at most \d\d"):
        make_suite(facts=500)
    with pytest.raises(UserError, match=r"--haystack .*text.txt has [\d,]+ tokens, --absorbed.windows needs 1[\d,]+"):
        make_suite(windows=[1000])
    with pytest.raises(ConfigError, match=r"--absorbed.windows: .*twice"):
        AbsorbedConfig(windows=[2, 2])
