"""SmolLM2-135M in float32: a real model's arithmetic, with tolerances that come from the base itself."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache

from pipeline.attention.window import WindowSpec
from pipeline.config import MemoryConfig
from pipeline.model.cache import HippocampusCache
from pipeline.model.loading import load_base

WINDOW = WindowSpec(num_sink_tokens=8, window_size=40)
LENGTH = 144
CHUNKS = [40, 30, 1, 1, 1, 45, 26]


@pytest.fixture(scope="module")
def text_tokens(smollm2):
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    with open(torch.nn.__file__.replace("__init__.py", "functional.py")) as file:
        return tokenizer(file.read(20_000), return_tensors="pt").input_ids[:, :LENGTH]


@pytest.fixture(scope="module")
def model(smollm2):
    model = load_base(str(smollm2), memory=MemoryConfig(), window=WINDOW, dtype=torch.float32).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for layer in model.get_decoder().layers:
            layer.ahn.fn.o_proj.weight.normal_(0, 0.02)
    return model


def in_chunks(model, tokens, cache):
    return torch.cat([model(part, past_key_values=cache).logits for part in tokens.split(CHUNKS, 1)], 1)


@pytest.mark.slow
@torch.no_grad()
def test_chunks_and_one_forward_differ_no_more_than_the_bases_own(model, smollm2, text_tokens):
    plain = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32).eval()
    base_whole = plain(text_tokens).logits
    base_error = (in_chunks(plain, text_tokens, DynamicCache(config=plain.config)) - base_whole).abs().max()

    whole = model(text_tokens, use_cache=False).logits
    error = (in_chunks(model, text_tokens, HippocampusCache(model.config, WINDOW)) - whole).abs().max()
    print(f"largest logit {whole.abs().max():.1f}; ours {error:.2e}, the base's own {base_error:.2e}")
    assert error <= 1e-4 * whole.abs().max()
    assert error <= 3 * base_error

    within = WINDOW.lossless_budget
    assert torch.equal(model(text_tokens[:, :within]).logits, plain(text_tokens[:, :within]).logits)
    effect = (whole - base_whole)[:, within:].abs().max()
    assert effect > 1e-2


@pytest.mark.slow
@torch.no_grad()
def test_greedy_generate_is_the_uncached_loop(model, text_tokens):
    prompt = text_tokens[:, : WINDOW.lossless_budget - 4]
    generated = model.generate(prompt, max_new_tokens=8, do_sample=False)
    expected = prompt
    while expected.shape[1] < generated.shape[1]:
        logits = model(expected, use_cache=False, logits_to_keep=1).logits
        expected = torch.cat([expected, logits[:, -1:].argmax(-1)], 1)
    assert torch.equal(generated, expected)
    assert generated.shape[1] > WINDOW.lossless_budget  # tokens were evicted while decoding
