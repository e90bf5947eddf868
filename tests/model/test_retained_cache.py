"""A cache with retained tokens as users hold it: padded rows, generation, turns, crop, files, rows of a batch."""

import pytest
import torch

from pipeline.attention.window import WindowSpec
from pipeline.errors import UserError
from pipeline.model.augment import memory_layers
from pipeline.model.cache import HippocampusCache
from pipeline.model.cache_file import load_cache, save_cache
from pipeline.model.loading import set_window
from tests.model.test_cache import GREEDY
from tests.model.test_exactness import TOLERANCE, hidden, in_chunks

WINDOWS = [WindowSpec(4, 8, 8), WindowSpec(2, 6, 3, 4)]


@pytest.fixture(params=WINDOWS, ids=str)
def window(request):
    return request.param


@pytest.fixture
def model(base_of_cell, window):
    return base_of_cell.load_acting(window=window)


def absorb(model, tokens, window, **options):
    cache = HippocampusCache(model.config, window)
    model(tokens, past_key_values=cache, **options)
    return cache


@torch.no_grad()
@pytest.mark.parametrize("chunks", [[48], [5, 30, 13], [20] + [1] * 28, [1] * 48], ids=lambda c: f"{len(c)} chunks")
def test_left_padded_rows_are_the_rows_alone(model, window, tokens, chunks):
    padding = 9
    mask = torch.ones_like(tokens)
    mask[1, :padding] = 0
    first = model(tokens[:1], use_cache=False).logits[0]
    second = model(tokens[1:, padding:], use_cache=False).logits[0]
    for batched in (
        in_chunks(model, tokens, chunks, mask, window),
        model(tokens, attention_mask=mask, use_cache=False).logits,
    ):
        torch.testing.assert_close(batched[0], first, rtol=0, atol=TOLERANCE)
        torch.testing.assert_close(batched[1, padding:], second, rtol=0, atol=TOLERANCE)


@torch.no_grad()
def test_greedy_generate_is_the_uncached_loop_also_in_two_turns(model, window, tokens):
    expected = tokens[:, :20]
    for _ in range(20):
        expected = torch.cat([expected, model(expected, use_cache=False).logits[:, -1:].argmax(-1)], 1)
    assert torch.equal(model.generate(tokens[:, :20], max_new_tokens=20, **GREEDY), expected)
    cache = HippocampusCache(model.config, window)
    first = model.generate(tokens[:, :20], past_key_values=cache, max_new_tokens=6, **GREEDY)
    conversation = torch.cat([first, tokens[:, 20:33]], 1)
    second = model.generate(conversation, past_key_values=cache, max_new_tokens=9, **GREEDY)
    assert torch.equal(second, model.generate(conversation, max_new_tokens=9, **GREEDY))


@torch.no_grad()
def test_beams_reorder_what_is_retained(model, tokens):
    options = {"num_beams": 4, "return_dict_in_generate": True, "output_scores": True, "length_penalty": 0.0}
    best = model.generate(tokens[:, :20], max_new_tokens=12, do_sample=False, **options)
    log_probs = model(best.sequences, use_cache=False).logits.log_softmax(-1)
    scores = log_probs[:, 19:-1].gather(-1, best.sequences[:, 20:, None]).sum((1, 2))
    torch.testing.assert_close(best.sequences_scores.double(), scores, rtol=1e-6, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("seen", [12, 40])
def test_a_saved_cache_and_a_snapshot_go_on_as_if_never_interrupted(model, window, tokens, tmp_path, padded, seen):
    mask = torch.ones_like(tokens)
    mask[1, : 9 * padded] = 0
    cache = absorb(model, tokens[:, :seen], window, attention_mask=mask[:, :seen])
    save_cache(cache, model, tmp_path / "document.safetensors")
    loaded, snapshot = load_cache(tmp_path / "document.safetensors", model), cache.snapshot()
    options = {"attention_mask": mask, "position_ids": (mask.cumsum(-1) - 1).clamp(min=0)[:, seen:]}
    expected = model(tokens[:, seen:], past_key_values=cache, **options).logits
    assert torch.equal(model(tokens[:, seen:], past_key_values=loaded, **options).logits, expected)
    assert torch.equal(model(tokens[:, seen:], past_key_values=snapshot, **options).logits, expected)


@torch.no_grad()
@pytest.mark.parametrize("removed", [1, 4, 13])
def test_crop_is_exact_while_nothing_was_dropped(model, window, tokens, removed):
    """Also what the forgotten queries gave the tokens that stay."""
    for seen in (13, window.lossless_budget):
        cache = absorb(model, tokens[:, :seen], window)
        cache.crop(-removed)
        rest = tokens[:, seen - removed :]
        logits = model(rest, past_key_values=cache).logits
        torch.testing.assert_close(logits, model(tokens).logits[:, seen - removed :], rtol=0, atol=TOLERANCE)
    cache = absorb(model, tokens, window)
    with pytest.raises(ValueError, match="cannot take back"):
        cache.crop(-1)


@torch.no_grad()
def test_a_scorer_that_was_not_fitted_keeps_a_wider_window(base_of_cell, tokens):
    """All scores equal, the older leave: the same logits as a window that is wider by what is retained, C = 1."""
    model = base_of_cell.load_acting(window=WindowSpec(4, 8, 8))
    for layer in memory_layers(model).values():
        for buffer in layer.ahn.retention.buffers():
            buffer.zero_()
    retained = in_chunks(model, tokens, [20, *[1] * 28], window=WindowSpec(4, 8, 8))
    set_window(model, WindowSpec(4, 16))
    torch.testing.assert_close(retained, model(tokens, use_cache=False).logits, rtol=0, atol=TOLERANCE)


@torch.no_grad()
def test_the_cache_stops_growing_and_holds_what_the_formula_says(model, window, tokens):
    cache, sizes = HippocampusCache(model.config, window), []
    for start in range(0, 48, 8):
        model(tokens[:, start : start + 8], past_key_values=cache)
        sizes.append(cache.num_bytes())
    assert len(set(sizes[3:])) == 1
    layer, budget = cache.layers[0], window.lossless_budget
    assert layer.keys.shape[2] == budget
    gates = sum(name.startswith("gates.") for name in layer.facts)
    numbers = 2 * budget * 2 * 16 + gates * budget * 4 + 2 * budget * 2 + 4 * 16 * 16  # k, v; gates; scores; state
    others = budget * 2 * (8 + 1)  # position, doomed
    assert layer.num_bytes() == 2 * (numbers * 8 + others)


@torch.no_grad()
def test_a_memory_left_out_is_retained_tokens_alone(model, window, tokens):
    expected = model.lm_head(hidden(model, tokens, use_memory=False))
    cache, logits = HippocampusCache(model.config, window, memory="off"), []
    for part in tokens.split([20, *[1] * 28], 1):
        logits.append(model(part, past_key_values=cache).logits)
    torch.testing.assert_close(torch.cat(logits, 1), expected, rtol=0, atol=TOLERANCE)


def test_a_window_that_retains_needs_a_scorer(base_of_cell):
    with pytest.raises(UserError, match="without a scorer"):
        set_window(base_of_cell.load_untrained(), WINDOWS[0])
