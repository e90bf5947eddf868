"""What suite `probing` measures, against plain computations on tiny float64 models whose memories act."""

import json

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoTokenizer

from pipeline.attention.window import Document
from pipeline.config import EvalConfig, ProbingConfig
from pipeline.data.loader import PackedDataset
from pipeline.errors import UserError
from pipeline.evaluation.probing.contributions import kl_without, memory_shares
from pipeline.evaluation.probing.gradients import token_gradients
from pipeline.evaluation.probing.passes import embed, read_whole, zeroed_memories
from pipeline.evaluation.probing.ratios import relative_log_ratios
from pipeline.evaluation.probing.suite import ProbingSuite
from pipeline.evaluation.probing.summary import NEIGHBOURS, bin_shares, neighbourhood_means, summarise
from pipeline.evaluation.probing.token_classes import LARGE, SMALL, classify, colours_of, words_of
from pipeline.evaluation.reader import Reader
from pipeline.evaluation.suite import EvaluationInputs
from pipeline.model.files import resolve_model
from pipeline.model.loading import load_model
from tests.conftest import TINY_VOCAB_SIZE
from tests.tiny_models import TINY_WINDOW
from tests.training.synthetic import make_data

LENGTH = 60
BUDGET, WINDOW_SIZE, SINKS = TINY_WINDOW.lossless_budget, TINY_WINDOW.window_size, TINY_WINDOW.num_sink_tokens
POSITIONS = torch.arange(BUDGET, LENGTH - 1)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory, folder) -> PackedDataset:
    data = tmp_path_factory.mktemp("probed") / "data"
    make_data(data, folder / "base", [[70, 20, 25], [64], [17]], seq_len=115)
    return PackedDataset(data)


@pytest.fixture(scope="module")
def model(folder):
    model = load_model(str(folder / "adapter"), dtype=torch.float32).double().eval()
    decoder = model.get_decoder()
    decoder.norm = in_float64(decoder.norm)
    for layer in decoder.layers:
        layer.input_layernorm = in_float64(layer.input_layernorm)
        layer.post_attention_layernorm = in_float64(layer.post_attention_layernorm)
        layer.ahn.fn.A_log.data.fill_(-4)  # forgets slowly
    return model


def in_float64(norm) -> nn.RMSNorm:
    """transformers' own computes in float32, too coarse for finite differences."""
    return nn.RMSNorm(len(norm.weight), norm.variance_epsilon, dtype=torch.float64).requires_grad_(False).eval()


@pytest.fixture(scope="module")
def ids():
    return torch.randint(2, TINY_VOCAB_SIZE, (LENGTH,), generator=torch.Generator().manual_seed(2))


@torch.no_grad()
def log_probs(model, embeddings, window, use_memory):
    """[rows, N, V] of texts [rows, N, hidden]."""
    documents = [Document(row, 0, embeddings.shape[1], window) for row in range(len(embeddings))]
    output = model(inputs_embeds=embeddings, use_cache=False, documents=documents, use_memory=use_memory)
    return output.logits.log_softmax(-1)


def kl_sums(model, ids, positions, embeddings, use_memory=True):
    """Sum over positions of KL(full || AHN), the AHN reading `embeddings` [rows, N, hidden] instead of the text's."""
    full = log_probs(model, embed(model, ids)[None], None, False)[:, positions]
    ahn = log_probs(model, embeddings, TINY_WINDOW, use_memory)[:, positions]
    return (full.exp() * (full - ahn)).sum((-1, -2))


def test_gradients_are_finite_differences(model, ids) -> None:
    found = token_gradients(model, ids, POSITIONS, TINY_WINDOW, chunk_size=7)
    queries = torch.arange(LENGTH - 1 - WINDOW_SIZE, LENGTH - 1)
    assert (found.first, found.num_queries) == (SINKS, WINDOW_SIZE)
    assert len(found.norms) == LENGTH - 1 - 2 * WINDOW_SIZE - SINKS + 1
    whole, step = embed(model, ids), 1e-5
    assert found.loss == pytest.approx(kl_sums(model, ids, queries, whole[None]).item(), rel=1e-9)
    hidden = whole.shape[1]
    for token in (SINKS, SINKS + 11, found.first + len(found.norms) - 1):
        moved = whole.repeat(2 * hidden, 1, 1)
        moved[:hidden, token] += step * torch.eye(hidden, dtype=whole.dtype)
        moved[hidden:, token] -= step * torch.eye(hidden, dtype=whole.dtype)
        for norms, use_memory in ((found.norms, True), (found.without_memory, False)):
            above, below = kl_sums(model, ids, queries, moved, use_memory).chunk(2)
            expected = ((above - below) / (2 * step)).norm().item()
            is_reached = use_memory or token >= queries[0] - 2 * (WINDOW_SIZE - 1)  # by the windows of two layers
            assert expected > 1e-4 if is_reached else expected == 0
            assert norms[token - found.first].item() == pytest.approx(expected, rel=1e-5, abs=1e-9)


def test_tokens_that_nothing_reaches_have_no_gradient(model, ids) -> None:
    with zeroed_memories(model, range(2)):
        found = token_gradients(model, ids, POSITIONS, TINY_WINDOW, chunk_size=64)
    first_query = LENGTH - 1 - WINDOW_SIZE
    reachable = torch.arange(found.first, found.first + len(found.norms)) >= first_query - 2 * (WINDOW_SIZE - 1)
    assert 0 < reachable.sum() < len(reachable)
    assert torch.equal(found.norms > 0, reachable) and torch.equal(found.without_memory > 0, reachable)
    torch.testing.assert_close(found.norms, found.without_memory)
    assert not any(p.grad is not None for p in model.parameters())
    assert not any(module.training for module in model.modules())
    intact = token_gradients(model, ids, POSITIONS, TINY_WINDOW, chunk_size=64)
    assert (intact.norms > 0).all() and torch.equal(intact.without_memory, found.without_memory)


def test_a_short_text_has_one_evicted_token(model, ids) -> None:
    short = BUDGET + 2
    found = token_gradients(model, ids[:short], torch.arange(BUDGET, short - 1), TINY_WINDOW, chunk_size=64)
    assert (found.first, len(found.norms), found.num_queries) == (SINKS, 1, 1)


def test_shares_are_what_the_memory_adds_over_what_attention_gives(model, ids) -> None:
    def into_o_proj(layer, zeroed):
        kept = []
        hook = (
            model.get_decoder()
            .layers[layer]
            .self_attn.o_proj.register_forward_pre_hook(lambda _module, args: kept.append(args[0][0]))
        )
        with hook, zeroed_memories(model, zeroed), torch.no_grad():
            read_whole(model, embed(model, ids), TINY_WINDOW)
        return kept[0]

    shares = memory_shares(model, ids, TINY_WINDOW)
    assert shares.shape == (2, LENGTH - BUDGET)
    for layer in range(2):
        both, attention = into_o_proj(layer, ()), into_o_proj(layer, (layer,))
        assert torch.equal(both[:BUDGET], attention[:BUDGET])
        expected = (both - attention)[BUDGET:].norm(dim=-1) / attention[BUDGET:].norm(dim=-1)
        torch.testing.assert_close(shares[layer], expected, rtol=1e-9, atol=0)


def test_zeroed_memories_are_those_of_zero_weights(model, ids) -> None:
    sums = kl_without(model, ids, POSITIONS, TINY_WINDOW, [(), (0,), (1,), (0, 1)], chunk_size=11)
    assert len({round(x, 6) for x in sums}) == 4
    embeddings = embed(model, ids)[None]
    assert sums[0] == pytest.approx(kl_sums(model, ids, POSITIONS, embeddings).item(), rel=1e-9)
    assert sums[3] == pytest.approx(kl_sums(model, ids, POSITIONS, embeddings, use_memory=False).item(), rel=1e-9)
    for layer in range(2):
        weight = model.get_decoder().layers[layer].ahn.fn.o_proj.weight
        kept = weight.detach().clone()
        with torch.no_grad():
            weight.zero_()
        assert kl_without(model, ids, POSITIONS, TINY_WINDOW, [()], chunk_size=11) == [sums[1 + layer]]
        with torch.no_grad():
            weight.copy_(kept)


def make_suite(folder, variants=("window", "ahn"), dataset=None, **probing) -> ProbingSuite:
    config = EvalConfig(model=folder / "adapter", output=folder / "eval", probing=ProbingConfig(**probing))
    files, tokenizer = resolve_model(folder / "adapter", None), AutoTokenizer.from_pretrained(folder / "base")
    return ProbingSuite(EvaluationInputs(config, files, TINY_WINDOW, variants, tokenizer, [], dataset))


def test_a_whole_suite(folder, dataset, model) -> None:
    suite = make_suite(folder, dataset=dataset, length=50, zeroing_length=30)
    units, reader = suite.units(), Reader(model, "ahn", TINY_WINDOW, 64, 4.0)
    assert len({unit.key for unit in units}) == len(units) == 3 * 5
    records = {unit.key: suite.measure(unit, {"ahn": reader}) for unit in units}
    assert records == json.loads(json.dumps(records, allow_nan=False))
    summary = suite.summarise(records)
    assert summary == json.loads(json.dumps(summary, allow_nan=False))
    assert summary["num_texts"] == 3 and np.shape(summary["shares"]) == (2, 16)
    probed = [record for record in records.values() if "norms" in record]
    assert sum(row["tokens"] for row in summary["classes"]) == sum(len(record["norms"]) for record in probed)

    positions = {"doc-0": 30, "doc-1": 20, "doc-2": 25}
    ids = {
        name: dataset[0].input_ids[start:][: positions[name]]
        for name, start in zip(positions, (0, 70, 90), strict=True)
    }
    sums = np.zeros(4)
    for document, length in positions.items():
        text = torch.from_numpy(ids[document].astype("int64"))
        layer_sets = [(), (0, 1), (0,), (1,)]
        sums += kl_without(model, text, torch.arange(BUDGET, length - 1), TINY_WINDOW, layer_sets, 64)
    tokens = sum(length - 1 - BUDGET for length in positions.values())
    layers = summary["layers"]
    assert layers["tokens"] == tokens
    found = [layers["intact"], layers["silent"]["kl"], *(row["kl"] for row in layers["without"])]
    assert found == pytest.approx(sums / tokens, rel=1e-9)
    row = layers["without"][1]
    assert row["effect_ci95"][0] <= row["effect"] <= row["effect_ci95"][1]

    classes, loud, matter = suite.sections(json.loads(json.dumps(summary)), records)
    assert len(classes.texts) == 4 and len(classes.texts[1]) == 51
    norms, without = (np.array(probed[0][name]) for name in ("norms", "without_memory"))
    coloured = [(colour, title) for _, colour, title in classes.texts[1][1:] if title]
    ratios = np.exp(relative_log_ratios(norms, without, NEIGHBOURS)[without > 0])
    assert 0 < len(ratios) < len(norms)  # with two layers, no window reaches the first ones
    assert [title for _, title in coloured] == [
        f"{ratio:.3g} (gradient {norm:.3g})" for ratio, norm in zip(ratios, norms[without > 0], strict=True)
    ]
    assert [colour for colour, _ in coloured] == colours_of(ratios)
    words = next(row for row in classes.tables[0].rows if row[0] == "words")
    of_words = next(row for row in summary["classes"] if row["class"] == "words")
    assert words[2:4] == ["3", f"{of_words['ratio']:.2f}"]
    assert loud.pictures[0].png.startswith(b"\x89PNG") and matter.pictures[0].png.startswith(b"\x89PNG")
    assert len(matter.tables[0].rows) == 4


def test_flags_that_cannot_be_are_told(folder, dataset) -> None:
    with pytest.raises(UserError, match=r"--data: .*leave it out of --suites"):
        make_suite(folder)
    with pytest.raises(UserError, match=r"--probing.zeroing_length 17: .* 18 tokens"):
        make_suite(folder, dataset=dataset, zeroing_length=17)
    assert make_suite(folder, ("full", "window"), dataset).units() == []


def test_bins_have_the_means_of_their_tokens() -> None:
    shares = torch.arange(2 * 40, dtype=torch.float64).reshape(2, 40)
    means, counts = bin_shares(shares, BUDGET + 48, TINY_WINDOW)  # 3 tokens a bin
    assert counts == [3] * 13 + [1, 0, 0]
    assert means[0][:2] == [1, 4] and means[1][13:] == [79, None, None]


def test_classes_are_compared_with_their_neighbours(folder) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder / "base")
    one, letter = (tokenizer(text, add_special_tokens=False).input_ids[0] for text in "1a")

    def record(document, tokens, norms, without):
        text = {"document": document, "ids": [0, *tokens, one], "first": 1, "norms": norms, "without_memory": without}
        return text | {"shares": [[1.0, None]], "counts": [2, 0]}

    texts = [
        record("a", [one, letter, letter], [1.0, 4.0, 1.0], [2.0, 1.0, 2.0]),  # ratios 1/2, 4, 1/2, mean 1
        record("b", [letter, one], [600.0, 200.0], [0.0, 1.0]),
        record("c", [letter, one], [300.0, 100.0], [75.0, 100.0]),  # 4, 1, mean 2
    ]
    zeroed = [{"document": d, "num_positions": 1, "kl": {"none": 1.0, "all": 3.0, "0": 2.0}} for d in "abc"]
    summary = summarise([*texts, *zeroed], tokenizer)
    digits, words = summary["classes"]
    assert (digits["class"], digits["tokens"], digits["mean_norm"], digits["relative"]) == (
        "digits", 3, pytest.approx(301 / 3), 0.5
    )  # fmt: skip
    assert words["class"] == "words" and words["relative"] == pytest.approx((2 + 0.5 + 1.5 + 1.5) / 4)
    assert words["relative_ci95"][0] < words["relative"] < words["relative_ci95"][1]
    assert digits["ratio"] == pytest.approx((0.5 * 1 * 0.5) ** (1 / 3))
    assert words["ratio"] == pytest.approx((4 * 0.5 * 2) ** (1 / 3)) and words["ratio_ci95"] is None  # of two texts
    assert digits["ratio_ci95"][0] < digits["ratio"] < digits["ratio_ci95"][1]
    assert summary["shares"] == [[1.0, None]]
    unreached = summarise([record("a", [one, one], [1.0, 2.0], [0.0, 0.0]), zeroed[0]], tokenizer)["classes"]
    assert (unreached[0]["relative"], unreached[0]["ratio"]) == (1.0, None)


def test_ratios_are_relative_to_those_of_their_neighbours_that_have_one() -> None:
    rng = np.random.default_rng(0)
    norms, without = rng.random(50), rng.random(50)
    without[[3, 20, 21, 49]] = 0
    logs = np.log(norms / np.where(without > 0, without, np.nan))
    means = [np.nanmean(logs[max(0, i - 5) : i + 6]) for i in range(50)]
    found = relative_log_ratios(norms.tolist(), without.tolist(), 5)
    np.testing.assert_allclose(found, logs - means, atol=1e-12)
    assert np.flatnonzero(np.isnan(found)).tolist() == [3, 20, 21, 49]
    np.testing.assert_allclose(relative_log_ratios(3 * without, without, 5)[without > 0], 0, atol=1e-12)
    assert np.isnan(relative_log_ratios([1.0], [0.0], 5)).all()


def test_neighbourhoods() -> None:
    norms = np.random.default_rng(0).random(50)
    means = [norms[max(0, i - NEIGHBOURS) : i + NEIGHBOURS + 1].mean() for i in range(50)]
    np.testing.assert_allclose(neighbourhood_means(norms), means)
    assert neighbourhood_means(np.zeros(3)).tolist() == [1, 1, 1]


def test_tokens_as_text(folder) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder / "base")
    text = "def f(x): return 12 + é\n"
    ids = tokenizer(text, add_special_tokens=False).input_ids
    kinds = {tokenizer.decode([token]): classify(tokenizer, token) for token in ids}
    assert kinds["1"] == "digits" and kinds["("] == "punctuation" and kinds["\n"] == "whitespace"
    assert kinds["\ufffd"] == "other" and classify(tokenizer, tokenizer.eos_token_id) == "other"
    assert any(kind == "words" for kind in kinds.values())
    assert len(words_of(tokenizer, ids)) == len(ids)
    plain = tokenizer(text.replace("é", "e"), add_special_tokens=False).input_ids
    assert "".join(words_of(tokenizer, plain)) == text.replace("é", "e")
    colours = colours_of([1e-9, *np.geomspace(1e-3, 1e3, 101), 1e9])
    assert colours[0] == "#{:02x}{:02x}{:02x}".format(*SMALL)
    assert colours[-1] == "#{:02x}{:02x}{:02x}".format(*LARGE)
    assert len(set(colours_of([3.0, 3.0]))) == 1
