"""The rules of the mathematics on all four families: tiny models, float64, memories that act."""

import pytest
import torch

from pipeline.attention.window import Document, WindowSpec
from pipeline.model.cache import HippocampusCache
from pipeline.model.supported import sliding_windows
from tests.model.conftest import CELLS, WINDOW

TOLERANCE = 1e-9
CHUNKINGS = [[48], [16, 16, 16], [20] + [1] * 28, [1] * 48, [7, 30, 11], [3, 1, 9, 35], [17, 31]]


def hidden(model, tokens, **kwargs):
    return model.get_decoder()(tokens, use_cache=False, **kwargs).last_hidden_state


def in_chunks(model, tokens, chunks, attention_mask=None, window=WINDOW):
    """Logits of every token from a cache that is fed chunk by chunk."""
    cache, start, logits = HippocampusCache(model.config, window), 0, []
    for size in chunks:
        end = start + size
        mask = None if attention_mask is None else attention_mask[:, :end]
        positions = None if mask is None else (mask.cumsum(-1) - 1).clamp(min=0)[:, start:end]
        logits.append(
            model(
                tokens[:, start:end],
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
            ).logits
        )
        start = end
    return torch.cat(logits, 1)


@torch.no_grad()
def test_the_memory_acts(base, tokens):
    """Without this, every test below would pass on a memory that does nothing."""
    model = base.load_acting()
    effect = (hidden(model, tokens) - hidden(model, tokens, use_memory=False)).abs()
    assert effect.max() > 1e-2
    assert effect[:, : WINDOW.lossless_budget].max() == 0
    assert effect[:, WINDOW.lossless_budget :].amax((0, 2)).min() > 1e-2  # from the first token past the budget on


def test_every_parameter_of_the_memory_gets_a_gradient_and_the_base_none(base, tokens):
    model = base.load_acting()
    hidden(model, tokens).square().sum().backward()
    for name, parameter in model.named_parameters():
        if ".ahn." in name:
            assert parameter.grad.abs().sum() > 0, name
        else:
            assert parameter.grad is None, name


@torch.no_grad()
@pytest.mark.parametrize("length", [1, 5, 15, 16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_within_the_budget_it_is_the_base_to_the_last_bit(base, tokens, length, dtype):
    model, plain = base.load_acting(dtype), base.load(dtype)
    assert torch.equal(model(tokens[:, :length]).logits, plain(tokens[:, :length]).logits)
    assert torch.equal(hidden(model, tokens[:, :length]), plain.get_decoder()(tokens[:, :length]).last_hidden_state)


@torch.no_grad()
def test_cached_steps_within_the_budget_are_the_bases_to_the_last_bit(base, tokens):
    """Sinks that have left the window included: window 12, budget 16."""
    model, plain = base.load_acting(torch.float32), base.load()
    ours, theirs = HippocampusCache(model.config, WINDOW), None
    for start, end in ((0, 5), (5, 13), (13, 14), (14, 15), (15, 16)):
        step = plain(tokens[:, start:end], past_key_values=theirs, use_cache=True)
        theirs = step.past_key_values
        assert torch.equal(model(tokens[:, start:end], past_key_values=ours).logits, step.logits)


@torch.no_grad()
@pytest.mark.parametrize("length", [17, 48])
def test_untrained_it_is_sinks_and_window(base, tokens, length):
    tokens = tokens[:, :length]
    model, plain = base.load_untrained().double(), base.load().double()
    position = torch.arange(length)
    visible = torch.from_numpy(WINDOW.visible(position[:, None].numpy(), position[None].numpy()))
    masks = visible[None, None].expand(2, 1, -1, -1)
    if any(sliding_windows(plain.config)):
        ago = position[:, None] - position
        own = ((ago >= 0) & (ago < plain.config.sliding_window))[None, None].expand(2, 1, -1, -1)
        masks = {"full_attention": masks, "sliding_attention": own}
    expected = plain(tokens, attention_mask=masks).logits
    torch.testing.assert_close(model(tokens, use_cache=False).logits, expected, rtol=0, atol=TOLERANCE)
    without = model.get_decoder()(tokens, use_cache=False, use_memory=False).last_hidden_state
    assert torch.equal(hidden(model, tokens), without)


@torch.no_grad()
@pytest.mark.parametrize("chunks", CHUNKINGS, ids=lambda c: "+".join(map(str, c[:4])))
def test_any_chunking_gives_the_logits_of_one_forward(base, tokens, chunks):
    model = base.load_acting()
    expected = model(tokens, use_cache=False).logits
    torch.testing.assert_close(in_chunks(model, tokens, chunks), expected, rtol=0, atol=TOLERANCE)


@torch.no_grad()
@pytest.mark.parametrize("window", [WindowSpec(0, 1), WindowSpec(0, 16), WindowSpec(8, 8), WindowSpec(20, 3)], ids=str)
def test_any_window_decodes_as_one_forward(base, tokens, window):
    model = base.load_acting(window=window)
    expected = model(tokens, use_cache=False).logits
    for chunks in ([48], [7, 30, 11], [1] * 48):
        actual = in_chunks(model, tokens, chunks, window=window)
        torch.testing.assert_close(actual, expected, rtol=0, atol=TOLERANCE)


@torch.no_grad()
@pytest.mark.parametrize(
    ("window", "chunks"),
    [
        (WindowSpec(100, 30), [50, 90]),
        (WindowSpec(64, 16), [30, 74]),
        (WindowSpec(128, 64), [100, 100, 1, 1, 10]),
        (WindowSpec(3, 200), [63, 1, 1, 100, 60, 1]),
    ],
    ids=str,
)
def test_chunks_that_fit_the_sinks_and_buffers_that_grow(base, window, chunks):
    """The buffer starts smaller than the window and doubles; the first chunks may hold nothing but sinks."""
    tokens = torch.randint(1, 131, (1, sum(chunks)), generator=torch.Generator().manual_seed(4))
    model = base.load_acting(window=window)
    expected = model(tokens, use_cache=False).logits
    assert (expected - model.lm_head(hidden(model, tokens, use_memory=False))).abs().max() > 1e-2
    actual = in_chunks(model, tokens, chunks, window=window)
    torch.testing.assert_close(actual, expected, rtol=0, atol=TOLERANCE)


@torch.no_grad()
def test_greedy_generate_is_the_uncached_loop(base, tokens):
    model = base.load_acting()
    generated = model.generate(tokens[:, :20], max_new_tokens=20, do_sample=False)
    expected = tokens[:, :20]
    for _ in range(20):
        expected = torch.cat([expected, model(expected, use_cache=False).logits[:, -1:].argmax(-1)], 1)
    assert torch.equal(generated, expected)


@torch.no_grad()
@pytest.mark.parametrize("chunks", [[48], [5, 30, 13], [20] + [1] * 28], ids=["whole", "chunks", "decode"])
def test_left_padded_rows_are_the_rows_alone(base, tokens, chunks):
    """Also a first chunk that is padding only in one row, and no cache at all."""
    model, padding = base.load_acting(), 9
    mask = torch.ones_like(tokens)
    mask[1, :padding] = 0
    first = model(tokens[:1], use_cache=False).logits[0]
    second = model(tokens[1:, padding:], use_cache=False).logits[0]
    for batched in (
        in_chunks(model, tokens, chunks, mask),
        model(tokens, attention_mask=mask, use_cache=False).logits,
    ):
        torch.testing.assert_close(batched[0], first, rtol=0, atol=TOLERANCE)
        torch.testing.assert_close(batched[1, padding:], second, rtol=0, atol=TOLERANCE)


@torch.no_grad()
def test_left_padded_greedy_generate_is_each_row_alone(base, tokens):
    model, padding = base.load_acting(), 9
    mask = torch.ones_like(tokens[:, :30])
    mask[1, :padding] = 0
    options = {"max_new_tokens": 15, "do_sample": False, "pad_token_id": 0}
    together = model.generate(tokens[:, :30], attention_mask=mask, **options)
    assert torch.equal(together[0], model.generate(tokens[:1, :30], **options)[0])
    assert torch.equal(together[1, padding:], model.generate(tokens[1:, padding:30], **options)[0])


@torch.no_grad()
def test_beam_search_ends_where_the_uncached_model_scores_it(base, tokens):
    """Beams reorder window, gates and state: the sequence's score equals that of an uncached forward."""
    model = base.load_acting()
    best = model.generate(
        tokens[:, :20],
        max_new_tokens=12,
        num_beams=4,
        do_sample=False,
        return_dict_in_generate=True,
        output_scores=True,
        length_penalty=0.0,
    )
    log_probs = model(best.sequences, use_cache=False).logits.log_softmax(-1)
    scores = log_probs[:, 19:-1].gather(-1, best.sequences[:, 20:, None]).sum((1, 2))
    torch.testing.assert_close(best.sequences_scores.double(), scores, rtol=1e-6, atol=1e-5)


def test_packed_documents_are_each_document_alone_with_all_gradients(base, tokens):
    """Outputs and gradients; different windows, a document within its budget, padding between documents."""
    model, row = base.load_acting(), tokens[:1]
    documents = [
        Document(0, 0, 20, WINDOW),
        Document(0, 22, 28, WINDOW),
        Document(0, 28, 46, WindowSpec(0, 5)),
        Document(0, 46, 47, None),
    ]
    parameters = [p for p in model.parameters() if p.requires_grad]
    packed = hidden(model, row, documents=documents)
    alone = [hidden(model, row[:, d.start : d.end], documents=[Document(0, 0, d.length, d.window)]) for d in documents]
    for d, expected in zip(documents, alone, strict=True):
        torch.testing.assert_close(packed[:, d.start : d.end], expected, rtol=0, atol=TOLERANCE)
    together = torch.autograd.grad(sum(packed[:, d.start : d.end].square().sum() for d in documents), parameters)
    separate = torch.autograd.grad(sum(x.square().sum() for x in alone), parameters)
    for a, e in zip(together, separate, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-8, atol=1e-9)


@torch.no_grad()
def test_full_attention_documents_are_the_base(base, tokens):
    """The teacher: same weights, memory and window off."""
    model, plain = base.load_acting(torch.float32), base.load()
    documents = [Document(row, 0, 48, None) for row in range(2)]
    teacher = hidden(model, tokens, documents=documents, use_memory=False)
    assert torch.equal(teacher, plain.get_decoder()(tokens).last_hidden_state)


def test_activation_checkpointing_changes_no_gradient(base, tokens):
    model = base.load_acting()
    parameters = [p for p in model.parameters() if p.requires_grad]
    plain = torch.autograd.grad(hidden(model, tokens).square().sum(), parameters)
    model.train()
    model.activation_checkpointing_enable()
    checkpointed = torch.autograd.grad(hidden(model, tokens).square().sum(), parameters)
    for a, e in zip(checkpointed, plain, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-10, atol=1e-12)


@torch.no_grad()
def test_the_cache_stops_growing_and_holds_what_the_formula_says(base, tokens):
    model = base.load_acting(torch.float32)
    cache = HippocampusCache(model.config, WINDOW)
    sizes = []
    for start in range(0, 48, 8):
        model(tokens[:, start : start + 8], past_key_values=cache)
        sizes.append(cache.num_bytes())
    sinks, window, kv_heads, heads, dim, rows = 4, 12, 2, 4, 16, 2
    kept = 2 * (sinks + window) * kv_heads * dim + CELLS[base.cell] * window * heads + heads * dim * dim
    own = [2 * size * kv_heads * dim for size in sliding_windows(model.config) if size]  # of layers without a memory
    assert sizes[2:] == [rows * ((3 - len(own)) * kept + sum(own)) * 4] * 4


@torch.no_grad()
@pytest.mark.parametrize(
    ("mask", "message"),
    [([1, 1, 0, 1], "left padding"), ([1, 1, 1, 0], "left padding")],
)
def test_a_mask_that_is_not_left_padding_is_refused(base, tokens, mask, message):
    with pytest.raises(ValueError, match=message):
        base.load_acting()(tokens[:1, :4], attention_mask=torch.tensor([mask]))
