"""Variants with retained tokens on a tiny float64 model, against simulations token by token and dense attention."""

import copy
import json
from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM

from pipeline.attention.window import Document, WindowSpec
from pipeline.config import EvalConfig, parse_variant
from pipeline.errors import UserError
from pipeline.evaluation.baseline_scorers import RandomScorer
from pipeline.evaluation.lm_eval_model import HippocampusLM
from pipeline.evaluation.oracle import later_mass_scores
from pipeline.evaluation.reader import Reader
from pipeline.evaluation.variant_caches import make_cache
from pipeline.evaluation.variant_choice import choose_variants
from pipeline.evaluation.variant_style import COLOURS, LABELS, colour_of, foreign_row, is_foreign, label, own_variant
from pipeline.model.augment import memory_layers
from pipeline.model.files import resolve_model
from pipeline.model.loading import load_model
from tests.attention.retention_simulator import simulate_drops
from tests.conftest import TINY_VOCAB_SIZE
from tests.model.retained_simulator import simulated
from tests.tiny_models import TINY_WINDOW, make_adapter

LENGTH, M, C = 64, 6, 3
RETAINING = replace(TINY_WINDOW, num_retained_tokens=M, decision_interval=C)
SINKS, REACH = TINY_WINDOW.num_sink_tokens, TINY_WINDOW.lossless_budget
EVERYWHERE = torch.arange(LENGTH)


@pytest.fixture(scope="module")
def adapter(folder, tmp_path_factory):
    return make_adapter(tmp_path_factory.mktemp("scored") / "adapter", folder / "base", RETAINING)


@pytest.fixture(scope="module")
def model(adapter):
    return load_model(str(adapter), dtype=torch.float32).double().eval()


@pytest.fixture(scope="module")
def ids():
    return torch.randint(2, TINY_VOCAB_SIZE, (LENGTH,), generator=torch.Generator().manual_seed(2))


def reader(model, variant, prefill_chunk=32, window=TINY_WINDOW, seed=0) -> Reader:
    return Reader(model, variant, window, prefill_chunk, 4.0, C, seed)


def read(model, variant, ids, **options) -> torch.Tensor:
    return reader(model, variant, **options).hidden_states(ids, EVERYWHERE)


@torch.no_grad()
def whole(model, ids, use_memory) -> torch.Tensor:
    documents = (Document(0, 0, len(ids), RETAINING),)
    return model.get_decoder()(ids[None], use_cache=False, documents=documents, use_memory=use_memory)[0][0]


def without_cells(model):
    """Scorers as they are, cells whose output is 0."""
    silent = copy.deepcopy(model)
    for layer in memory_layers(silent).values():
        torch.nn.init.zeros_(layer.ahn.fn.o_proj.weight)
    return silent


def retained_of(cache) -> list[list[set[int]]]:
    """For each layer and key-value head the positions past the sinks that have left the window and are kept."""
    return [
        [{int(p) for p in head if SINKS <= p < layer.num_seen - TINY_WINDOW.window_size} for head in row]
        for layer in cache.layers
        for row in layer.facts["position"]
    ]


def kept_of(scores) -> set[int]:
    """What one head keeps of candidates with these scores, from the rule's definition."""
    return {SINKS + i for i in range(len(scores))} - {SINKS + i for i in simulate_drops(scores, M, C)}


def test_retained_tokens_are_the_simulation_with_and_without_the_cell(model, ids) -> None:
    with simulated() as counts:
        with_cell, without = (whole(m, ids, True) for m in (model, without_cells(model)))
    assert set(counts) == {LENGTH - RETAINING.lossless_budget}
    torch.testing.assert_close(read(model, f"retained{M}_ahn", ids), with_cell, rtol=0, atol=1e-6)
    torch.testing.assert_close(read(model, f"retained{M}", ids), without, rtol=0, atol=1e-6)
    assert (with_cell - without).abs().max() > 1e-2


def test_received_mass_alone_is_the_simulation_of_a_scorer_of_nothing_else(model, ids) -> None:
    by_mass = without_cells(model)
    for layer in memory_layers(by_mass).values():
        for name, value in (("weight", 0.0), ("mass_weight", 1.0), ("position_weight", 0.0), ("bias", 0.0)):
            torch.nn.init.constant_(getattr(layer.ahn.retention, name), value)
    with simulated():
        expected = whole(by_mass, ids, True)
    for chunk in (7, 64):
        found = read(model, f"received{M}", ids, prefill_chunk=chunk)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert (found - read(model, f"retained{M}", ids)).abs().max() > 1e-2


def test_a_wider_window_keeps_as_many_tokens(model, ids) -> None:
    window = WindowSpec(SINKS, TINY_WINDOW.window_size + M + C - 1)
    assert window.lossless_budget == reader(model, f"retained{M}").kept.lossless_budget
    expected = read(model, "window", ids, window=window)
    assert torch.equal(read(model, f"wider{M}", ids), expected)
    assert (expected - read(model, "window", ids)).abs().max() > 1e-2


def test_chance_is_the_same_however_a_text_is_cut_and_read_on(model, ids) -> None:
    expected = read(model, f"random{M}", ids, prefill_chunk=LENGTH)
    for chunk in (1, 7, 32):
        found = read(model, f"random{M}", ids, prefill_chunk=chunk)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    of_seed = {seed: read(model, f"random{M}", ids, seed=seed) for seed in (1, 2)}
    assert (of_seed[1] - expected).abs().max() > 1e-2 and (of_seed[2] - of_seed[1]).abs().max() > 1e-2
    r = reader(model, f"random{M}")
    cache = r.new_cache()
    r.read(ids[:30], cache)
    r.read(ids[30:], snapshot := cache.snapshot())
    for token in ids[30:].split(1):
        r.read(token, cache)
    scores = [RandomScorer(0, n).score_positions(EVERYWHERE[None], 2, torch.float64)[0].T for n in range(2)]
    candidates = slice(SINKS, LENGTH - TINY_WINDOW.window_size)
    expected = [[kept_of(head[candidates].tolist()) for head in of_layer] for of_layer in scores]
    assert retained_of(cache) == retained_of(snapshot) == expected
    heads = [head for of_layer in expected for head in of_layer]
    assert len({frozenset(head) for head in heads}) == len(heads), "heads or layers draw the same tokens"


def test_drawn_numbers_are_even_and_independent() -> None:
    numbers = RandomScorer(7, 3).score_positions(torch.arange(4096)[None], 2, torch.float64)[0]
    assert ((numbers >= 0) & (numbers < 1)).all() and len(numbers.unique()) > 8000
    assert (numbers.mean(0) - 0.5).abs().max() < 0.02 and (numbers.var(0) - 1 / 12).abs().max() < 0.005
    assert torch.corrcoef(numbers.T)[0, 1].abs() < 0.05
    assert torch.corrcoef(torch.stack([numbers[1:, 0], numbers[:-1, 0]]))[0, 1].abs() < 0.05


def test_the_oracle_keeps_what_dense_attention_will_read_most(model, folder, ids) -> None:
    base = AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.float64, attn_implementation="eager")
    with torch.no_grad():
        attentions = base(ids[None], output_attentions=True).attentions
    r = reader(model, f"oracle{M}")
    scores = later_mass_scores(model, ids, TINY_WINDOW)
    cache = make_cache(model, parse_variant(f"oracle{M}"), r.kept, 0, scores)
    r.read(ids, cache)
    last = LENGTH - TINY_WINDOW.window_size
    expected = []
    for weights in attentions:
        of_heads = weights[0].unflatten(0, (2, -1)).mean(1)  # [Hkv, T, T]
        means = [[head[j + TINY_WINDOW.window_size :, j].mean().item() for j in range(last)] for head in of_heads]
        torch.testing.assert_close(scores[len(expected)][:, :last], torch.tensor(means), rtol=1e-4, atol=1e-7)
        expected.append([kept_of(head[SINKS:]) for head in means])
    assert retained_of(cache) == expected
    own = reader(model, f"retained{M}").new_cache()
    r.read(ids, own)
    assert retained_of(own) != expected, "the model's scorer chooses the same"
    found = read(model, f"oracle{M}", ids)
    again = make_cache(model, parse_variant(f"oracle{M}"), r.kept, 0, scores)
    with torch.no_grad():
        torch.testing.assert_close(
            found, model.get_decoder()(ids[None], past_key_values=again)[0][0], atol=1e-6, rtol=0
        )


@torch.no_grad()
def test_rows_padded_on_the_left_draw_by_their_own_positions(model, ids) -> None:
    r = reader(model, f"random{M}")
    rows, mask = torch.stack([ids, ids.flip(0)]), torch.ones(2, LENGTH, dtype=torch.int64)
    mask[1, :9] = 0
    alone = r.hidden_states(rows[1, 9:], torch.arange(LENGTH - 9))
    for cuts in ([LENGTH], [20, *[1] * (LENGTH - 20)]):
        cache, found, seen = r.new_cache(), [], 0
        for part in rows.split(cuts, 1):
            seen += part.shape[1]
            read_on = model.get_decoder()(part, attention_mask=mask[:, :seen], past_key_values=cache)
            found.append(read_on.last_hidden_state)
        torch.testing.assert_close(torch.cat(found, 1)[1, 9:], alone, rtol=0, atol=1e-6)


def test_what_cannot_be_is_refused_in_a_line(folder, adapter) -> None:
    def choose(model, variants, suites=("heldout",)):
        config = EvalConfig(model=model, output=folder / "eval", suites=list(suites), variants=variants)
        files = resolve_model(model, None)
        return choose_variants(config, files, 0 if files.window is None else files.window.num_retained_tokens)

    assert choose(adapter, None) == ("full", "window", f"wider{M}", f"retained{M}", f"retained{M}_ahn", "ahn")
    assert "memory_off" in choose(folder / "adapter", None) and "ahn" not in choose(folder / "base", None)
    assert choose(folder / "base", ["random64", "oracle9"]) == ("random64", "oracle9")
    for model in (folder / "adapter", folder / "base"):
        with pytest.raises(UserError, match=r"^--variants retained64_ahn: .* no scorer.*--train\.loss retention.*$"):
            choose(model, ["full", "retained64_ahn"])
    with pytest.raises(UserError, match=r"^--variants oracle64: it sees the text's future.* add heldout to --suites"):
        choose(adapter, ["full", "oracle64"], ["needles"])


def test_a_model_folder_says_what_it_retains_also_with_another_window(folder, adapter, tmp_path) -> None:
    files = resolve_model(adapter, None)
    assert (files.window, files.has_scorer) == (RETAINING, True)
    assert files.choose_window(None, 20) == replace(RETAINING, window_size=20)
    for number, interval in ((9, C), (0, 1)):
        chosen = replace(RETAINING, num_retained_tokens=number, decision_interval=interval)
        assert files.choose_window(None, None, number) == chosen
        assert HippocampusLM(str(adapter), num_retained_tokens=number).window == chosen
    with pytest.raises(UserError, match=r"^--num_retained_tokens 9: .* has no fitted scorer"):
        HippocampusLM(str(folder / "adapter"), num_retained_tokens=9)
    assert resolve_model(folder / "adapter", None).choose_window(None, None, 0) == TINY_WINDOW
    assert (
        not resolve_model(folder / "adapter", None).has_scorer and not resolve_model(folder / "base", None).has_scorer
    )
    settings = json.loads((adapter / "ahn_config.json").read_text())
    unknown = ("num_retained_tokens", "decision_interval", "has_scorer")
    for name, changes in (("before", {}), ("scored", {"has_scorer": True}), ("torn", {"has_scorer": "yes"})):
        (tmp_path / name).mkdir()
        older = {key: value for key, value in settings.items() if key not in unknown} | changes
        (tmp_path / name / "ahn_config.json").write_text(json.dumps(older))
    assert (found := resolve_model(tmp_path / "before", None)).window == TINY_WINDOW and not found.has_scorer
    assert (found := resolve_model(tmp_path / "scored", None)).window == TINY_WINDOW and found.has_scorer
    with pytest.raises(UserError, match=r"is damaged .*has_scorer is 'yes'"):
        resolve_model(tmp_path / "torn", None)


def test_every_kind_has_a_name_and_a_colour_and_numbers_are_told_apart() -> None:
    names = ["full", "full_yarn", "window", "compressive_max", "compressive_mean", "memory_off", "ahn"]
    names += [f"{kind}{n}" for kind in ("wider", "retained", "random", "received", "oracle") for n in (16, 64, 128)]
    names += ["retained64_ahn"]
    assert len({label(name) for name in names}) == len({colour_of(name) for name in names}) == len(names)
    assert LABELS.keys() == COLOURS.keys()
    for name in ("ahn", "retained64", "retained64_ahn"):
        row = foreign_row(name)
        assert is_foreign(row) and not is_foreign(name) and own_variant(row) == own_variant(name) == name
        assert label(row).endswith("another document's memory") and colour_of(row) == colour_of(name)
