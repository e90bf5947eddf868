"""The text of suite `probing` that shows which tokens are retained, on a tiny model."""

import json
from dataclasses import replace

import pytest
import torch

from pipeline.config import EvalConfig, ProbingConfig
from pipeline.data.loader import PackedDataset
from pipeline.evaluation.probing.retained import shade
from pipeline.evaluation.probing.suite import ProbingSuite
from pipeline.evaluation.probing.token_classes import NOT_PROBED, classify
from pipeline.evaluation.reader import Reader
from pipeline.evaluation.suite import EvaluationInputs
from pipeline.model.files import resolve_model
from pipeline.model.loading import load_model
from tests.tiny_models import TINY_WINDOW, make_adapter
from tests.training.synthetic import make_data

M, C, LENGTH = 6, 3, 60
SINKS, WINDOW_SIZE = TINY_WINDOW.num_sink_tokens, TINY_WINDOW.window_size
RETAINED = f"retained{M}"


@pytest.fixture(scope="module")
def adapter(folder, tmp_path_factory):
    window = replace(TINY_WINDOW, num_retained_tokens=M, decision_interval=C)
    return make_adapter(tmp_path_factory.mktemp("scored") / "adapter", folder / "base", window)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory, folder) -> PackedDataset:
    data = tmp_path_factory.mktemp("probed") / "data"
    make_data(data, folder / "base", [[70]], seq_len=80)
    return PackedDataset(data)


def make_suite(adapter, dataset, tokenizer, variants, length=LENGTH) -> ProbingSuite:
    config = EvalConfig(model=adapter, output=adapter / "eval", probing=ProbingConfig(length=length))
    return ProbingSuite(
        EvaluationInputs(config, resolve_model(adapter, None), TINY_WINDOW, variants, tokenizer, [], dataset, C)
    )


def test_tokens_are_coloured_by_how_many_heads_keep_them(adapter, dataset, tokenizer) -> None:
    suite = make_suite(adapter, dataset, tokenizer, ("window", RETAINED, "ahn"))
    unit, model = suite.units()[-1], load_model(str(adapter), dtype=torch.float32).eval()
    reader = Reader(model, RETAINED, TINY_WINDOW, 16, 4.0, C)
    assert unit.variants == (RETAINED,)
    record = suite.measure(unit, {RETAINED: reader})
    assert record == json.loads(json.dumps(record)) and record["evicted"] == LENGTH - TINY_WINDOW.lossless_budget

    cache, ids = reader.new_cache(), torch.tensor(record["ids"])
    for token in ids.split(1):
        reader.read(token, cache)
    kept = [[set(head.tolist()) for head in layer.facts["position"][0]] for layer in cache.layers]
    candidates = range(SINKS, LENGTH - WINDOW_SIZE)
    assert record["heads"] == [sum(p in head for layer in kept for head in layer) for p in candidates]
    assert record["middle"] == [sum(p in head for head in kept[1]) for p in candidates]
    assert (record["num_heads"], record["num_middle"], record["layer"]) == (4, 2, 1)
    assert sum(record["heads"]) >= 4 * M and len(set(record["heads"])) > 1

    others = {u.key: suite.measure(u, {"ahn": Reader(model, "ahn", TINY_WINDOW, 64, 4.0)}) for u in suite.units()[:-1]}
    records = others | {unit.key: record}
    summary = suite.summarise(records)
    classes = {row["class"]: row for row in summary["retained"]["classes"]}
    assert sum(row["tokens"] for row in classes.values()) == len(candidates)
    of_words = [n for n, p in zip(record["heads"], candidates, strict=True) if classify(tokenizer, ids[p]) == "words"]
    assert classes["words"]["share"] == pytest.approx(sum(of_words) / len(of_words) / 4)
    section = suite.sections(json.loads(json.dumps(summary)), records)[-1]
    assert section.title == "Which evicted tokens are retained"
    words = section.texts[1][1:]
    assert [colour for _, colour, _ in words[SINKS : LENGTH - WINDOW_SIZE]] == [
        shade(RETAINED, heads / 4) for heads in record["heads"]
    ]
    assert {colour for _, colour, _ in (*words[:SINKS], *words[LENGTH - WINDOW_SIZE :])} == {NOT_PROBED}
    first = record["heads"][0], record["middle"][0]
    assert words[SINKS][2] == "{} of 4 heads; {} of 2 in layer 1".format(*first)


def test_a_text_within_the_budget_is_kept_whole_and_without_a_scorer_there_is_none(adapter, dataset, tokenizer) -> None:
    large = "retained60"
    suite = make_suite(adapter, dataset, tokenizer, ("ahn", large), 40)
    model = load_model(str(adapter), dtype=torch.float32).eval()
    record = suite.measure(suite.units()[-1], {large: Reader(model, large, TINY_WINDOW, 16, 4.0, C)})
    assert record["heads"] == [4] * (40 - TINY_WINDOW.lossless_budget)
    for variants in (("ahn", "random6"), ("window", RETAINED)):
        assert all(unit.variants == ("ahn",) for unit in make_suite(adapter, dataset, tokenizer, variants).units())
