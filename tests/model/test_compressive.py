"""The Compressive Transformer's cache against its definition, a query at a time in float64."""

import pytest
import torch
from transformers import Qwen2Config
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from pipeline.attention.window import WindowSpec
from pipeline.errors import UserError
from pipeline.model.cache import HippocampusCache
from pipeline.model.compressive_cache import CompressiveCache, num_slots_of_state
from tests.model.conftest import SIZES, VOCAB, WINDOW, Base

NO_SINKS = WindowSpec(num_sink_tokens=0, window_size=7)
NUM_SLOTS = 5  # float64: an AHN state of 4 x 16 x 16 x 4 bytes, slots of 2 x 2 x 16 x 8 bytes, 3 tokens wait
REFERENCE = "naive_compressive"


@pytest.fixture(scope="module")
def folder(base_folders):
    return str(base_folders["qwen2"])


@pytest.fixture(scope="module")
def model(folder):
    return Base(folder, "gated_delta_net").load_acting()


@pytest.fixture(scope="module")
def plain(folder):
    """The base without memories, in float64."""
    return Base(folder, "gated_delta_net").load(torch.float64)


def text(length, rows=2):
    return torch.randint(1, VOCAB, (rows, length), generator=torch.Generator().manual_seed(7))


def reference(plain, tokens, window, pooling):
    """Logits by the definition: explicit lists of keys and values for each query of each head."""
    num_sinks, size = window.num_sink_tokens, window.window_size

    def seen(keys, t):  # [T, D] -> what the query at t sees
        blocks, first = [], num_sinks
        while first + 3 <= t - size:
            block = keys[first : first + 4]
            blocks.append(block.max(0).values if pooling == "max" else block.sum(0) / 4)
            first += 4
        raw = [keys[j] for j in range(t + 1) if j < num_sinks or j >= first]
        return torch.stack(raw + blocks[-NUM_SLOTS:])

    def attention(module, query, key, value, attention_mask, scaling, **kwargs):
        output = torch.zeros_like(query)
        group = query.shape[1] // key.shape[1]
        for row in range(query.shape[0]):
            for head in range(query.shape[1]):
                for t in range(query.shape[2]):
                    scores = seen(key[row, head // group], t) @ query[row, head, t] * scaling
                    weights = (scores - scores.max()).exp()
                    output[row, head, t] = weights / weights.sum() @ seen(value[row, head // group], t)
        return output.transpose(1, 2), None

    ALL_ATTENTION_FUNCTIONS.register(REFERENCE, attention)
    before, plain.config._attn_implementation = plain.config._attn_implementation, REFERENCE
    try:
        return plain(tokens, use_cache=False).logits
    finally:
        plain.config._attn_implementation = before


def read(model, tokens, cache, chunk_sizes):
    """Logits of all tokens, read in chunks of these sizes, the last one again and again."""
    logits, start, sizes = [], 0, list(chunk_sizes)
    while start < tokens.shape[1]:
        size = sizes.pop(0) if len(sizes) > 1 else sizes[0]
        logits.append(model(tokens[:, start : start + size], past_key_values=cache).logits)
        start += size
    return torch.cat(logits, 1)


def new_cache(model, window=WINDOW, pooling="max"):
    return CompressiveCache(model.config, torch.float64, window, pooling)


@torch.no_grad()
@pytest.mark.parametrize("pooling", ["max", "mean"])
@pytest.mark.parametrize("window", [WINDOW, NO_SINKS])
@pytest.mark.parametrize("num_evicted", [-5, 0, 3, 4, 38])  # nothing, tokens that wait, one block, slots run over
def test_equals_the_definition(model, plain, window, pooling, num_evicted):
    tokens = text(window.lossless_budget + num_evicted)
    expected = reference(plain, tokens, window, pooling)
    for chunk_sizes in ([1000], [1], [3], [7], [64], [window.lossless_budget - 2, 1], [9, 1, 1, 1, 11]):
        actual = read(model, tokens, new_cache(model, window, pooling), chunk_sizes)
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-9, msg=lambda m, c=chunk_sizes: f"{c}: {m}")
    if num_evicted <= 0:
        torch.testing.assert_close(expected, plain(tokens).logits, rtol=0, atol=1e-9)


@torch.no_grad()
def test_a_long_step_is_read_in_blocks(model):
    tokens = text(600, rows=1)
    whole = read(model, tokens, new_cache(model), [600])
    torch.testing.assert_close(whole, read(model, tokens, new_cache(model), [50]), rtol=0, atol=1e-9)


@torch.no_grad()
def test_the_slots_matter_and_so_does_how_they_are_pooled(model):
    tokens = text(54)
    window_only = read(model, tokens, HippocampusCache(model.config, WINDOW, memory="off"), [54])
    maximum, mean = (read(model, tokens, new_cache(model, pooling=p), [54]) for p in ("max", "mean"))
    first = WINDOW.lossless_budget + 3  # completes the first block
    for a, b in ((maximum, window_only), (mean, window_only), (maximum, mean)):
        assert ((a - b)[:, first:].abs().amax((0, 2)) > 1e-2).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_slots_and_waiting_tokens_take_the_bytes_of_the_state(folder, dtype):
    model = Base(folder, "gated_delta_net").load_acting(dtype)
    compressive = CompressiveCache(model.config, dtype, WINDOW, "mean")
    hippocampus = HippocampusCache(model.config, WINDOW)
    tokens = text(120, rows=1)
    with torch.no_grad():
        model(tokens[:, :16], past_key_values=compressive)
        assert compressive.memory_bytes() == 0 and compressive.num_bytes() > 0
        for cache in (compressive, hippocampus):
            model(tokens[:, cache.get_seq_length() :], past_key_values=cache)
    layer, state = compressive.layers[0], hippocampus.layers[0].state
    slot_bytes = 2 * 2 * 16 * dtype.itemsize
    assert 0 <= state.numel() * state.element_size() - layer.memory_bytes() < slot_bytes
    assert compressive.memory_bytes() == 3 * layer.memory_bytes()
    assert layer.num_bytes() - layer.memory_bytes() == WINDOW.lossless_budget * slot_bytes
    assert layer.keys.dtype == layer.values.dtype == dtype


@torch.no_grad()
def test_nothing_grows_with_the_text(model):
    tokens, cache, sizes = text(100, rows=1), new_cache(model), []
    for end in (20, 60, 100):
        read(model, tokens[:, cache.get_seq_length() : end], cache, [8])
        sizes.append((cache.num_bytes(), cache.memory_bytes()))
    assert sizes[0] == sizes[1] == sizes[2] and sizes[0][1] > 0


@pytest.mark.parametrize(("dtype", "num_slots"), [(torch.bfloat16, 1021), (torch.float32, 509)])
def test_slots_of_qwen(dtype, num_slots):
    """Qwen2.5-3B: a state of 16 x 128 x 128 x 4 = 1,048,576 bytes; slots of 1,024 bytes in bfloat16."""
    config = Qwen2Config(hidden_size=2048, num_hidden_layers=36, num_attention_heads=16, num_key_value_heads=2)
    assert num_slots_of_state(config, dtype) == num_slots
    assert (num_slots + 3) * 2 * 2 * 128 * dtype.itemsize == 16 * 128 * 128 * 4


def test_a_state_without_room_for_a_slot_is_refused():
    """Of 2 x 8 x 8 x 4 = 512 bytes, where a slot has 2 x 2 x 8 x 8 = 256."""
    config = Qwen2Config(**{**SIZES, "hidden_size": 16, "num_attention_heads": 2, "num_key_value_heads": 2})
    with pytest.raises(UserError, match="--variants"):
        CompressiveCache(config, torch.float64, WINDOW, "max")


@torch.no_grad()
@pytest.mark.parametrize("seen", [10, 37])
def test_a_snapshot_goes_on_as_if_never_interrupted(model, seen):
    tokens, cache = text(54), new_cache(model)
    read(model, tokens[:, :seen], cache, [20])
    snapshot = cache.snapshot()
    first = read(model, tokens[:, seen:], cache, [3])
    for _ in range(2):
        cache.restore(snapshot)
        assert cache.get_seq_length() == seen and isinstance(cache, CompressiveCache)
        assert torch.equal(read(model, tokens[:, seen:], cache, [3]), first)


@torch.no_grad()
def test_generate_continues_greedily(model, plain):
    options = {"do_sample": False, "pad_token_id": 0, "max_new_tokens": 12}
    tokens = text(30)
    generated = model.generate(tokens, past_key_values=new_cache(model), **options)
    expected = reference(plain, generated[:, :-1], WINDOW, "max")[:, 29:].argmax(-1)
    assert torch.equal(generated[:, 30:], expected)


@torch.no_grad()
def test_crop_within_the_budget_is_exact_and_past_an_eviction_refused(model, plain):
    tokens, cache = text(40), new_cache(model)
    read(model, tokens[:, :16], cache, [16])
    cache.crop(-6)
    logits = read(model, tokens[:, 10:], cache, [7])
    torch.testing.assert_close(logits, reference(plain, tokens, WINDOW, "max")[:, 10:], rtol=0, atol=1e-9)
    with pytest.raises(ValueError, match="snapshot"):
        cache.crop(-1)


def test_padding_is_refused(model):
    mask = torch.ones(2, 20, dtype=torch.int64)
    mask[1, :3] = 0
    with pytest.raises(ValueError, match="takes no padding"):
        model(text(20), attention_mask=mask, past_key_values=new_cache(model))
