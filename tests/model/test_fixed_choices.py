"""What transformers lets users choose: an AHN model keeps its memory, or says in one line what works."""

import copy

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from pipeline.errors import UserError
from pipeline.model.hybrid_attention import IMPLEMENTATION
from tests.model.conftest import Base

GREEDY = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}


@pytest.fixture(scope="module")
def merged(base_folders, tmp_path_factory):
    """A merged folder whose memory acts, and the model loaded from it."""
    folder = str(tmp_path_factory.mktemp("merged"))
    Base(str(base_folders["qwen2"]), "gated_delta_net").load_acting(torch.float32).save_pretrained(folder)
    return folder, AutoModelForCausalLM.from_pretrained(folder).eval()


@pytest.fixture(scope="module")
def expected(merged):
    """Of the model as it is: logits and greedy tokens, both past the budget."""
    with torch.no_grad():
        return _answers(merged[1])


def _answers(model):
    tokens = torch.randint(1, 131, (2, 48), generator=torch.Generator().manual_seed(3))
    return model(tokens, use_cache=False).logits, model.generate(tokens[:, :20], **GREEDY)


def _by_method(merged, choice):
    model = copy.deepcopy(merged[1])
    model.set_attn_implementation(choice)
    return model


def _by_decoders_method(merged, choice):
    model = copy.deepcopy(merged[1])
    model.get_decoder().set_attn_implementation(choice)
    return model


def _by_config(merged, choice):
    model = copy.deepcopy(merged[1])
    model.config._attn_implementation = choice
    return model


def _by_loading(merged, choice):
    return AutoModelForCausalLM.from_pretrained(merged[0], attn_implementation=choice).eval()


def _by_loaded_config(merged, choice):
    config = AutoConfig.from_pretrained(merged[0], attn_implementation=choice)
    return AutoModelForCausalLM.from_pretrained(merged[0], config=config).eval()


WAYS = (_by_method, _by_decoders_method, _by_config, _by_loading, _by_loaded_config)


@torch.no_grad()
@pytest.mark.parametrize("choose", WAYS)
def test_the_memory_stays_or_one_line_says_what_works(merged, expected, choose):
    for choice in ("sdpa", {"": "sdpa"}, IMPLEMENTATION):
        model = choose(merged, choice)
        assert model.config._attn_implementation == IMPLEMENTATION
        assert all(torch.equal(found, due) for found, due in zip(_answers(model), expected, strict=True))
    others = "eager", "flash_attention_2", "flash_attention_3", "flex_attention", "kernels-community/flash-attn"
    for choice in (*others, "paged|eager", "paged|sdpa", "paged|flash_attention_2", {"": "eager"}):
        with pytest.raises(UserError, match=r"attn_implementation='.*': .* leave attn_implementation out .* 'sdpa'$"):
            choose(merged, choice)
    assert all(torch.equal(found, due) for found, due in zip(_answers(merged[1]), expected, strict=True))


@torch.no_grad()
def test_what_transformers_sets_behind_the_config_changes_nothing(merged, expected):
    model = copy.deepcopy(merged[1])
    model.config._attn_implementation_internal = "eager"
    assert all(torch.equal(found, due) for found, due in zip(_answers(model), expected, strict=True))


@torch.no_grad()
@pytest.mark.parametrize("name", ["static", "offloaded", "offloaded_static", "quantized", "dynamic"])
def test_any_cache_implementation_is_the_cache_of_constant_size(merged, expected, name, caplog):
    tokens = torch.randint(1, 131, (2, 48), generator=torch.Generator().manual_seed(3))
    assert torch.equal(merged[1].generate(tokens[:, :20], cache_implementation=name, **GREEDY), expected[1])
    assert ("of constant size already" in caplog.text) == (name != "dynamic")


def test_continuous_batching_is_refused(merged):
    model, prompts = merged[1], [[1, 2, 3], [4, 5]]
    for ask in (
        lambda: model.generate_batch(prompts, max_new_tokens=2),
        lambda: model.generate(torch.tensor(prompts[:1]), cache_implementation="paged"),
        lambda: model.init_continuous_batching(),
        lambda: model.continuous_batching_context_manager().__enter__(),
    ):
        with pytest.raises(UserError, match=r"^continuous batching .* use generate"):
            ask()


def test_a_layer_that_does_not_reach_its_memory_is_an_error(merged):
    """Whatever replaced it: here the module's forward, as kernels of others are put in."""
    model = copy.deepcopy(merged[1])
    attention = model.get_decoder().layers[1].self_attn
    attention.forward = lambda hidden_states, **_: (hidden_states, None)
    for use_cache in (False, True):
        with pytest.raises(UserError, match=r"^layer 1: Qwen2Attention did not call AHN's attention function"):
            model(torch.ones(1, 20, dtype=torch.int64), use_cache=use_cache)
