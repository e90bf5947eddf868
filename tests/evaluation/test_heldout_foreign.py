"""The control of suite `heldout`: a text read with another one's memory, against steps of one token with caches of
their own."""

import json

import numpy as np
import pytest
import torch

from pipeline.config import EvalConfig
from pipeline.data.loader import PackedDataset
from pipeline.evaluation.heldout.foreign import choose_partner, read_with_foreign_memory
from pipeline.evaluation.heldout.pieces import Piece, select_pieces
from pipeline.evaluation.heldout.suite import HeldoutSuite, rounding_kl
from pipeline.evaluation.reader import Reader
from pipeline.evaluation.suite import EvaluationInputs
from pipeline.model.cache import HippocampusCache
from pipeline.model.files import resolve_model
from pipeline.model.loading import load_model
from tests.conftest import TINY_VOCAB_SIZE
from tests.tiny_models import TINY_WINDOW
from tests.training.synthetic import make_data

LENGTH, BUDGET, WINDOW_SIZE = 60, TINY_WINDOW.lossless_budget, TINY_WINDOW.window_size
POSITIONS = torch.arange(BUDGET, LENGTH - 1)


@pytest.fixture(scope="module")
def model(folder):
    model = load_model(str(folder / "adapter"), dtype=torch.float32).double().eval()
    for layer in model.get_decoder().layers:
        layer.ahn.fn.A_log.data.fill_(-4)  # forgets slowly
    return model


@pytest.fixture(scope="module")
def texts():
    return torch.randint(2, TINY_VOCAB_SIZE, (2, LENGTH), generator=torch.Generator().manual_seed(2))


def reader(model, variant="ahn", prefill_chunk=32) -> Reader:
    return Reader(model, variant, TINY_WINDOW, prefill_chunk, yarn_factor=4.0)


@torch.no_grad()
def read_step_by_step(model, own, other):
    """[N, hidden]: `own` writes nothing and, at each token, reads the state that `other` has after as many."""
    writes, lent = (HippocampusCache(model.config, TINY_WINDOW, memory=mode) for mode in ("no_writes", "on"))
    found = []
    for token, beside in zip(own.split(1), other.split(1), strict=True):
        model.get_decoder()(input_ids=beside[None], past_key_values=lent, use_cache=True)
        for layer, lender in zip(writes.layers, lent.layers, strict=True):
            layer.state = lender.state
        output = model.get_decoder()(input_ids=token[None], past_key_values=writes, use_cache=True)
        found.append(output.last_hidden_state[0, 0])
    return torch.stack(found)


@pytest.mark.parametrize("prefill_chunk", [7, 32, 128])
def test_each_layer_reads_the_others_state_and_the_own_tokens_are_never_written(model, texts, prefill_chunk) -> None:
    own, other = texts
    expected = read_step_by_step(model, own, other)[POSITIONS]
    found = read_with_foreign_memory(reader(model, prefill_chunk=prefill_chunk), own, other, POSITIONS)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    before = {variant: reader(model, variant).hidden_states(own, POSITIONS) for variant in ("ahn", "window")}
    assert all((found - x).abs().max() > 0.1 for x in before.values())
    itself = read_with_foreign_memory(reader(model), own, own, POSITIONS)
    torch.testing.assert_close(itself, before["ahn"], rtol=1e-5, atol=1e-5)


def test_a_shorter_text_lends_its_memory_as_far_as_it_reaches(model, texts) -> None:
    own, other = texts
    whole = read_with_foreign_memory(reader(model), own, other, POSITIONS)
    found = read_with_foreign_memory(reader(model), own, other[:40], POSITIONS)
    assert len(found) == 40 + WINDOW_SIZE - BUDGET < len(POSITIONS)  # its last token is evicted with 12 after it
    torch.testing.assert_close(found, whole[: len(found)], rtol=1e-5, atol=1e-5)


def piece(document: str, length: int) -> Piece:
    return Piece(0, 0, length, document, np.arange(BUDGET, length - 1))


def test_the_next_document_that_lasts_lends_its_memory() -> None:
    a, b, c = lenders = [piece("a", 60), piece("b", 40), piece("c", 48)]
    assert choose_partner(a, lenders, WINDOW_SIZE) is c  # 48 of a's tokens are evicted
    assert choose_partner(b, lenders, WINDOW_SIZE) is c and choose_partner(c, lenders, WINDOW_SIZE) is a
    assert choose_partner(piece("c", 20), lenders, WINDOW_SIZE) is a
    assert choose_partner(a, [a, b], WINDOW_SIZE) is b  # the longest there is
    assert choose_partner(a, [a, c, piece("d", 60)], WINDOW_SIZE) is c  # which lasts, and comes first
    assert choose_partner(a, [a], WINDOW_SIZE) is None


@pytest.fixture(scope="module")
def dataset(tmp_path_factory, folder) -> PackedDataset:
    data = tmp_path_factory.mktemp("lending") / "data"
    make_data(data, folder / "base", [[70, 20], [64], [17]], seq_len=90)
    return PackedDataset(data)


def make_suite(folder, dataset, variants=("window", "ahn"), **options) -> HeldoutSuite:
    config = EvalConfig(model=folder / "adapter", output=folder / "eval", pieces_per_document=1, **options)
    files = resolve_model(folder / "adapter", None)
    return HeldoutSuite(EvaluationInputs(config, files, TINY_WINDOW, variants, None, [], dataset))


def measure(suite, model, variants=("full", "window", "ahn")):
    readers = {variant: reader(model, variant) for variant in variants}
    records = {unit.key: suite.measure(unit, readers) for unit in suite.units()}
    assert records == json.loads(json.dumps(records, allow_nan=False))
    return records


def test_a_whole_suite_has_the_control_and_says_what_it_gains(folder, dataset, model) -> None:
    suite = make_suite(folder, dataset)
    records = measure(suite, model)
    long, short = records.values()
    assert (long["partner"], short["partner"]) == ("doc-1", "doc-0")
    own, other = (torch.from_numpy(dataset[0].input_ids[part].astype("int64")) for part in (slice(70), slice(70, 90)))
    with torch.no_grad():
        read = {"foreign": read_with_foreign_memory(reader(model), own, other, torch.arange(BUDGET, 69))}
        read["full"] = reader(model, "full").hidden_states(own, torch.arange(BUDGET, 32))
        p, q = (model.lm_head(read[row]).log_softmax(-1) for row in ("full", "foreign"))
    assert long["kl"]["foreign"] == pytest.approx((p.exp() * (p - q)).sum(-1).tolist(), rel=1e-5)
    assert len(long["kl"]["foreign"]) == 20 + WINDOW_SIZE - BUDGET and len(short["kl"]["foreign"]) == 19 - BUDGET

    summary = suite.summarise(records)
    assert summary == json.loads(json.dumps(summary, allow_nan=False)) and summary["rounding_kl"] is None
    control, tokens = summary["control"], 16 + 3
    means = {row: (sum(long["kl"][row][:16]) + sum(short["kl"][row])) / tokens for row in ("window", "ahn", "foreign")}
    assert control["num_tokens"] == tokens and control["kl"] == pytest.approx(means)
    assert control["difference"] == pytest.approx(means["foreign"] - means["ahn"])
    share = control["recovered"]["foreign"]["share"]
    assert share == pytest.approx(1 - means["foreign"] / means["window"])
    (section,) = suite.sections(summary, records)
    row = section.tables[0].rows[-1]
    assert row[:2] == [f"AHN, another document's memory, on {tokens} tokens", f"{means['foreign']:.4f}"]
    assert row[3] == f"{share:.1%}"
    assert f"has {tokens} of the {53 + 3} tokens" in section.note and len(section.tiles) == 3


def test_the_lender_is_the_same_however_few_documents_are_scored(folder, dataset, model) -> None:
    first = next(iter(measure(make_suite(folder, dataset, max_documents=1), model).values()))
    assert first == next(iter(measure(make_suite(folder, dataset), model).values()))
    assert "foreign" in first["kl"]


def test_without_another_document_or_a_memory_there_is_no_control(folder, model, tmp_path) -> None:
    make_data(tmp_path / "data", folder / "base", [[70], [64]], seq_len=70)
    alone = PackedDataset(tmp_path / "data")
    assert len({p.document for p in select_pieces(alone, BUDGET, None, None)}) == 1
    suite = make_suite(folder, alone)
    records = measure(suite, model)
    assert all("foreign" not in record["kl"] and "partner" not in record for record in records.values())
    (section,) = suite.sections(suite.summarise(records), records)
    assert "No control: --data has no second document" in section.note and "(no control)" in section.title
    suite = make_suite(folder, alone, ("window",))
    records = measure(suite, model, ("full", "window"))
    assert "control" not in suite.sections(suite.summarise(records), records)[0].note


def test_what_a_narrow_dtype_rounds_off_is_measured_once(folder, dataset) -> None:
    narrow = load_model(str(folder / "adapter"), dtype=torch.bfloat16).eval()
    suite = make_suite(folder, dataset)
    records = measure(suite, narrow)
    first, second = records.values()
    assert 0 < first["rounding_kl"] < 0.1 * sum(first["kl"]["window"]) / len(first["kl"]["window"])
    assert "rounding_kl" not in second
    summary = suite.summarise(records)
    assert summary["rounding_kl"] == first["rounding_kl"]
    (section,) = suite.sections(summary, records)
    assert f"a KL of {first['rounding_kl']:.2g} nats per token to itself" in section.note


def test_float64_reads_the_same_in_any_parts_and_rounds_nothing_off(model, texts) -> None:
    assert abs(rounding_kl(reader(model, "full"), texts[0], POSITIONS, 64)) < 1e-9
