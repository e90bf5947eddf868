"""The cache as users hold it: chunked prefill, turns, crop, snapshots, files, rows of a batch. Float64, exact."""

import pytest
import torch

from pipeline.attention.window import WindowSpec
from pipeline.errors import UserError
from pipeline.model.cache import HippocampusCache
from pipeline.model.cache_file import load_cache, save_cache
from tests.model.conftest import WINDOW, Base

GREEDY = {"do_sample": False, "pad_token_id": 0}


def absorb(model, tokens, mask=None):
    cache = HippocampusCache(model.config, WINDOW)
    model(tokens, attention_mask=mask, past_key_values=cache)
    return cache


@torch.no_grad()
@pytest.mark.parametrize("chunk_size", [1, 7, 100])
def test_chunked_prefill_generates_the_same(base, tokens, chunk_size):
    model = base.load_acting()
    expected = model.generate(tokens, max_new_tokens=10, **GREEDY)
    actual = model.generate(tokens, max_new_tokens=10, prefill_chunk_size=chunk_size, **GREEDY)
    assert torch.equal(actual, expected)


@torch.no_grad()
def test_two_turns_are_one(base, tokens):
    """A second turn goes on from the cache of the first; the cache is re-entrant."""
    model = base.load_acting()
    cache = HippocampusCache(model.config, WINDOW)
    first = model.generate(tokens[:, :20], past_key_values=cache, max_new_tokens=6, **GREEDY)
    conversation = torch.cat([first, tokens[:, 20:33]], 1)
    second = model.generate(conversation, past_key_values=cache, max_new_tokens=9, **GREEDY)
    assert torch.equal(second, model.generate(conversation, max_new_tokens=9, **GREEDY))


@torch.no_grad()
@pytest.mark.parametrize("padded", [False, True])
def test_a_saved_cache_goes_on_as_if_never_interrupted(base, tokens, tmp_path, padded):
    model, mask = base.load_acting(), torch.ones_like(tokens)
    if padded:
        mask[1, :9] = 0
    cache = absorb(model, tokens[:, :40], mask[:, :40])
    save_cache(cache, model, tmp_path / "document.safetensors")
    loaded = load_cache(tmp_path / "document.safetensors", model)
    options = {"attention_mask": mask, "position_ids": (mask.cumsum(-1) - 1)[:, 40:]}
    expected = model(tokens[:, 40:], past_key_values=cache, **options).logits
    assert torch.equal(model(tokens[:, 40:], past_key_values=loaded, **options).logits, expected)
    assert [f.name for f in tmp_path.iterdir()] == ["document.safetensors"]


def test_a_cache_of_another_model_or_a_damaged_one_is_refused(base_of_family, tokens, tmp_path):
    model = base_of_family.load_acting()
    path = tmp_path / "document.safetensors"
    with torch.no_grad():
        save_cache(absorb(model, tokens), model, path)
        model.get_decoder().layers[2].ahn.fn.o_proj.weight.mul_(1.001)
    with pytest.raises(UserError, match="other weights"):
        load_cache(path, model)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(UserError, match="cannot be read"):
        load_cache(path, model)
    with pytest.raises(UserError, match="nowhere"):
        load_cache(tmp_path / "nowhere", model)


@torch.no_grad()
def test_a_cache_of_layers_with_another_sliding_window_is_refused(base_folders, tokens, tmp_path):
    """The base's own: the weights do not tell."""
    model = Base(str(base_folders["gemma3"]), "delta_net").load_acting()
    save_cache(absorb(model, tokens), model, tmp_path / "document.safetensors")
    model.config.sliding_window += 1
    with pytest.raises(UserError, match="other sliding windows"):
        load_cache(tmp_path / "document.safetensors", model)


@torch.no_grad()
@pytest.mark.parametrize("seen", [10, 16])
def test_crop_is_exact_while_nothing_was_evicted(base, tokens, seen):
    model = base.load_acting()
    cache = absorb(model, tokens[:, :seen])
    cache.crop(-4)
    logits = model(tokens[:, seen - 4 :], past_key_values=cache).logits
    torch.testing.assert_close(logits, model(tokens).logits[:, seen - 4 :], rtol=0, atol=1e-9)


@torch.no_grad()
def test_crop_past_an_eviction_is_refused_and_a_snapshot_brings_it_back(base, tokens):
    model = base.load_acting()
    cache = absorb(model, tokens[:, :30])
    snapshot = cache.snapshot()
    first = model(tokens[:, 30:], past_key_values=cache).logits
    with pytest.raises(ValueError, match="snapshot"):
        cache.crop(-18)
    for _ in range(2):  # a snapshot can be used again
        cache.restore(snapshot)
        assert cache.get_seq_length() == 30
        assert torch.equal(model(tokens[:, 30:], past_key_values=cache).logits, first)


@torch.no_grad()
def test_a_padded_cache_keeps_its_padding_and_derives_positions(base, tokens):
    """The next step may leave out mask and positions; a mask of the new tokens alone is refused."""
    model, mask = base.load_acting(), torch.ones_like(tokens)
    mask[1, :9] = 0
    cache = absorb(model, tokens[:, :40], mask[:, :40])
    with pytest.raises(ValueError, match="covers 1 tokens"):
        model(tokens[:, 40:41], attention_mask=mask[:, 40:41], past_key_values=cache)
    logits = model(tokens[:, 40:], past_key_values=cache).logits
    alone = model(tokens[1:, 9:], use_cache=False).logits[:, -8:]
    torch.testing.assert_close(logits[1:], alone, rtol=0, atol=1e-9)


@pytest.mark.parametrize("tokens_to_remove", [8, -11])
def test_crop_takes_no_more_than_there_is(base_of_family, tokens, tokens_to_remove):
    with torch.no_grad():
        cache = absorb(base_of_family.load_acting(), tokens[:, :10])
    with pytest.raises(ValueError, match="of 10"):
        cache.crop(tokens_to_remove)


def test_an_empty_cache_can_be_saved(base_of_family, tmp_path):
    model = base_of_family.load_acting()
    save_cache(HippocampusCache(model.config, WINDOW), model, tmp_path / "empty")
    assert load_cache(tmp_path / "empty", model).get_seq_length() == 0


@torch.no_grad()
def test_rows_can_be_repeated_and_selected(base, tokens):
    model = base.load_acting()
    cache = absorb(model, tokens[:, :40])
    cache.batch_repeat_interleave(2)
    cache.batch_select_indices(torch.tensor([3, 0]))
    swapped = tokens.flip(0)
    logits = model(swapped[:, 40:], past_key_values=cache).logits
    torch.testing.assert_close(logits, model(swapped).logits[:, 40:], rtol=0, atol=1e-9)


@torch.no_grad()
def test_several_sequences_from_one_prompt(base, tokens):
    model = base.load_acting()
    options = {"max_new_tokens": 8, "num_beams": 4, "num_return_sequences": 4}
    returned = model.generate(tokens[:1, :30], **options, **GREEDY)
    assert returned.shape == (4, 38) and len(returned.unique(dim=0)) == 4
    assert torch.equal(returned, model.generate(tokens[:1, :30], prefill_chunk_size=11, **options, **GREEDY))


@torch.no_grad()
def test_a_short_prompt_takes_little_room_in_a_long_window(base_of_family, tokens):
    model = base_of_family.load_acting(torch.float32)
    cache = HippocampusCache(model.config, WindowSpec(128, 32_640))
    model(tokens, past_key_values=cache)
    assert cache.layers[0].keys.shape[2] < 200


def test_assisted_decoding_past_the_budget_says_why_not(base_of_family, tokens):
    model = base_of_family.load_acting()
    within = model.generate(tokens[:1, :6], max_new_tokens=8, prompt_lookup_num_tokens=3, **GREEDY)
    assert torch.equal(within, model.generate(tokens[:1, :6], max_new_tokens=8, **GREEDY))
    repetitive = tokens[:1, :4].repeat(1, 10)  # makes prompt look-up propose tokens, which must be taken back
    with pytest.raises(ValueError, match="evicted"):
        model.generate(repetitive, max_new_tokens=30, prompt_lookup_num_tokens=3, **GREEDY)


@torch.no_grad()
def test_bfloat16_decodes_near_its_own_whole_forward(base, tokens):
    """Keys and values in bfloat16, gates and state in float32."""
    model = base.load_acting(torch.bfloat16)
    cache = absorb(model, tokens[:, :30])
    steps = [model(token, past_key_values=cache).logits for token in tokens[:, 30:].split(1, 1)]
    whole = model(tokens, use_cache=False).logits[:, 30:]
    difference = (torch.cat(steps, 1) - whole).float()
    assert difference.norm() < 0.05 * whole.float().norm()
    dtypes = {name: value.dtype for name, value in cache.layers[0].tensors().items()}
    assert dtypes.pop("keys") == dtypes.pop("values") == torch.bfloat16
    assert set(dtypes.values()) == {torch.float32}


@torch.no_grad()
@pytest.mark.parametrize("chunk_size", [None, 10])
def test_generation_computes_logits_of_the_last_token_only(base_of_family, tokens, chunk_size):
    model, widths = base_of_family.load_acting(), []
    model.lm_head.register_forward_pre_hook(lambda _, inputs: widths.append(inputs[0].shape[1]))
    model.generate(tokens, max_new_tokens=4, prefill_chunk_size=chunk_size, **GREEDY)
    assert widths and set(widths) == {1}
