"""What a model says under each variant, against whole forwards and plain log-softmax over whole logits."""

import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma3TextConfig, LlamaConfig

from pipeline.attention.window import Document
from pipeline.errors import UserError
from pipeline.evaluation.heldout.suite import score_variants
from pipeline.evaluation.positions import trained_positions
from pipeline.evaluation.reader import Reader
from pipeline.model.loading import load_model
from tests.conftest import TINY_VOCAB_SIZE
from tests.tiny_models import TINY_WINDOW

LENGTH = 90
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
POSITIONS = torch.arange(TINY_WINDOW.lossless_budget, LENGTH - 1)


@pytest.fixture(scope="module")
def model(folder):
    return load_model(str(folder / "adapter"), dtype=torch.float32).double().eval()


@pytest.fixture(scope="module")
def ids():
    return torch.randint(2, TINY_VOCAB_SIZE, (LENGTH,), generator=torch.Generator().manual_seed(2))


def reader(model, variant, prefill_chunk=32) -> Reader:
    return Reader(model, variant, TINY_WINDOW, prefill_chunk, yarn_factor=4.0)


@torch.no_grad()
def whole_log_probs(model, ids, window, use_memory):
    """Of every next token [N, V], by one forward over the whole text."""
    document = Document(0, 0, len(ids), window)
    return model(ids[None], use_cache=False, documents=(document,), use_memory=use_memory).logits[0].log_softmax(-1)


@pytest.fixture(scope="module")
def expected(model, ids):
    scopes = {"full": (None, False), "window": (TINY_WINDOW, False), "ahn": (TINY_WINDOW, True)}
    found = {variant: whole_log_probs(model, ids, *scope) for variant, scope in scopes.items()}
    assert (found["ahn"] - found["window"]).abs().max() > 1e-2 and (found["full"] - found["ahn"]).abs().max() > 1e-2
    return found | {"memory_off": found["window"]}


def test_scores_are_those_of_whole_logits(model, ids, expected) -> None:
    scores = score_variants({v: reader(model, v) for v in expected}, ids, POSITIONS, chunk_size=17)
    full, targets = expected["full"][POSITIONS], ids[POSITIONS + 1][:, None]
    for variant, log_probs in expected.items():
        log_probs = log_probs[POSITIONS]
        nll = -log_probs.gather(-1, targets)[:, 0]
        torch.testing.assert_close(scores["nll"][variant].double(), nll, rtol=1e-6, atol=1e-6, msg=variant)
        if variant != "full":
            kl = (full.exp() * (full - log_probs)).sum(-1)
            torch.testing.assert_close(scores["kl"][variant].double(), kl, rtol=1e-6, atol=1e-6, msg=variant)
    assert "full" not in scores["kl"]


def test_the_first_position_that_differs_is_the_first_that_evicts(model, ids) -> None:
    variants = ("full", "window", "ahn", "compressive_mean")
    kl = score_variants({v: reader(model, v, 7) for v in variants}, ids[:60], torch.arange(59), chunk_size=7)["kl"]
    budget = TINY_WINDOW.lossless_budget
    for variant, first in (("window", budget), ("ahn", budget), ("compressive_mean", budget + 3)):  # waits for a block
        assert kl[variant][:first].abs().max() < 1e-7 and kl[variant][first] > 1e-6, variant


@pytest.mark.parametrize("variant", ["full", "window", "memory_off", "ahn"])
def test_generation_and_scores_from_a_snapshot_are_those_of_the_whole_text(model, ids, expected, variant) -> None:
    log_probs, of_variant = expected[variant], reader(model, variant)
    cache = of_variant.new_cache()
    of_variant.read(ids[:50], cache)
    before = cache.snapshot()
    scores = of_variant.score(ids[:60], 5, cache)
    following = torch.arange(55, 59)
    torch.testing.assert_close(scores.log_probs, log_probs[following].gather(-1, ids[56:60, None])[:, 0])
    cache.restore(before)
    new = of_variant.generate(ids[50:60].tolist(), cache, 6)
    scope = {"full": (None, False), "ahn": (TINY_WINDOW, True)}.get(variant, (TINY_WINDOW, False))
    text = ids[:60]
    for token in new:
        assert token == int(whole_log_probs(model, text, *scope)[-1].argmax())
        text = torch.cat([text, torch.tensor([token])])
    assert len(new) == 6
    cache.restore(before)
    assert of_variant.generate(ids[50:60].tolist(), cache, 6, stop_tokens=new[3:4]) == new[: new.index(new[3])]


@pytest.mark.parametrize("config", [Gemma3TextConfig(), LlamaConfig(rope_parameters=LLAMA3)], ids=["gemma3", "llama3"])
def test_yarn_in_place_of_a_rope_that_is_not_plain_is_refused(config) -> None:
    """It would change nothing where each kind of layer has its own, and drop llama3's scaling."""
    with pytest.raises(UserError, match="--variants full_yarn: the base's RoPE is"):
        Reader.check_yarn(config)
    assert trained_positions(LlamaConfig(rope_parameters=LLAMA3, max_position_embeddings=131_072)) == 131_072
    linear = {"rope_type": "linear", "rope_theta": 1e5, "factor": 4.0}  # deepseek-coder's
    assert trained_positions(LlamaConfig(rope_parameters=linear, max_position_embeddings=16_384)) == 16_384
    yarn = {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 32_768}
    assert trained_positions(LlamaConfig(rope_parameters=yarn, max_position_embeddings=32_768)) == 131_072


def test_yarn_is_transformers_own_and_only_for_its_variant(model, folder, ids) -> None:
    rope = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024, "rope_theta": 10_000.0}
    base = AutoModelForCausalLM.from_pretrained(folder / "base", rope_parameters=rope, dtype=torch.float64).eval()
    plain = reader(model, "full").hidden_states(ids, POSITIONS)
    found = reader(model, "full_yarn").hidden_states(ids, POSITIONS)
    with torch.no_grad():
        wanted = base.model(ids[None]).last_hidden_state[0, POSITIONS]
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6)  # the frequencies are float32
    assert (found - plain).abs().max() > 1e-2
    assert torch.equal(reader(model, "full").hidden_states(ids, POSITIONS), plain)
