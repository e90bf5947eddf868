"""A frozen base never draws, though its config asks for it and the model is in training mode."""

import pytest
import torch
from torch import Tensor, nn

from pipeline.attention.window import WindowSpec
from pipeline.config import MemoryConfig
from pipeline.model.loading import load_base, load_model
from tests.model.conftest import VOCAB
from tests.model.families import DRAWS, make_model, save_model


@pytest.fixture(scope="module")
def tokens() -> Tensor:
    return torch.randint(1, VOCAB, (1, 20), generator=torch.Generator().manual_seed(3))


def load_acting(folder: str) -> nn.Module:
    model = load_base(folder, memory=MemoryConfig(), window=WindowSpec(2, 6), dtype=torch.float32)
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(0, 0.3)
    return model


def hidden_and_gradients(model: nn.Module, tokens: Tensor) -> list[Tensor]:
    hidden = model.get_decoder()(tokens, use_cache=False).last_hidden_state
    return [hidden, *torch.autograd.grad(hidden.square().mean(), [p for p in model.parameters() if p.requires_grad])]


@pytest.mark.parametrize("family", DRAWS)
def test_training_mode_changes_no_bit_of_a_frozen_base_with_layers_recomputed_too(tmp_path, tokens, family):
    plain = make_model(family, **DRAWS[family]).train()
    torch.manual_seed(0)
    drawn = [plain(tokens, use_cache=False).logits for _ in range(2)]
    assert (drawn[0] - drawn[1]).abs().max() > 1e-3, "the plain base does not draw"
    model = load_acting(save_model(tmp_path / "base", family, **DRAWS[family]))
    due = hidden_and_gradients(model.eval(), tokens)
    assert all(gradient.abs().max() > 0 for gradient in due[1:]), "a memory does not act"
    calls: list[None] = []
    model.get_decoder().layers[1].self_attn.register_forward_hook(lambda *_: calls.append(None))
    for num_calls, enable in ((2, False), (4, True)):  # of two forwards
        model.train()
        if enable:
            model.activation_checkpointing_enable()
        calls.clear()
        for _ in range(2):
            found = hidden_and_gradients(model, tokens)
            assert all(torch.equal(a, e) for a, e in zip(found, due, strict=True))
        assert len(calls) == num_calls
    assert model.training and all(layer.ahn.training for layer in model.get_decoder().layers)


def test_a_merged_model_evaluates_frozen_and_one_that_a_user_loads_trains_as_any_other(tmp_path, tokens):
    load_acting(save_model(tmp_path / "base", "llama", **DRAWS["llama"])).save_pretrained(tmp_path / "merged")
    model = load_model(str(tmp_path / "merged"), dtype=torch.float32)
    due = model(tokens, use_cache=False).logits
    assert torch.equal(model.train()(tokens, use_cache=False).logits, due)
    free = type(model).from_pretrained(tmp_path / "merged", dtype=torch.float32).train()
    assert all(module.training for module in free.modules())


def test_without_a_cache_in_training_and_with_one_else(tmp_path, tokens):
    model = load_acting(save_model(tmp_path / "base", "llama"))
    assert model.eval()(tokens).past_key_values is not None
    assert model.train()(tokens).past_key_values is None
    with torch.no_grad():
        assert model(tokens).past_key_values is not None
