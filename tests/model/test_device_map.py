"""A merged folder spread by device_map, with weights on disk or in memory until their module runs."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from pipeline.errors import UserError
from pipeline.model.cache import HippocampusCache
from pipeline.model.cache_file import save_cache
from pipeline.model.cache_layer import HippocampusLayer
from tests.model.conftest import CELLS, WINDOW, Base

PARTS_OF_A_LAYER = {"self_attn": "disk", "mlp": "cpu", "input_layernorm": "disk", "post_attention_layernorm": "cpu"}
OFFLOADED = {
    "disk": {"": "disk"},
    "mixed": {
        **dict.fromkeys(("model.embed_tokens", "model.rotary_emb", "lm_head", "model.layers.0"), "cpu"),
        **{f"model.layers.1.{part}": where for part, where in PARTS_OF_A_LAYER.items()},
        **dict.fromkeys(("model.layers.1.ahn", "model.layers.2", "model.norm"), "disk"),
    },
}


@torch.no_grad()
@pytest.mark.parametrize("cell", CELLS)
def test_an_offloaded_model_is_the_model(base_folders, tokens, tmp_path, cell):
    """Within the budget, past it, and decoding; memories on disk included, whose own parameters some cells need."""
    model = Base(str(base_folders["qwen2"]), cell).load_acting(torch.float32)
    model.save_pretrained(tmp_path / "merged")
    options = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    generated = model.generate(tokens[:, :14], **options)
    for name, device_map in OFFLOADED.items():
        where = {"device_map": device_map, "offload_folder": tmp_path / name}
        offloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", **where).eval()
        assert next(offloaded.get_decoder().layers[2].ahn.parameters()).is_meta
        for length in (10, 48):
            found = offloaded(tokens[:, :length], use_cache=False).logits
            assert torch.equal(found, model(tokens[:, :length], use_cache=False).logits)
        assert torch.equal(offloaded.generate(tokens[:, :14], **options), generated)
        assert next(offloaded.get_decoder().layers[2].ahn.parameters()).is_meta  # and so again
        with pytest.raises(UserError, match=r"weight is offloaded by device_map, .* load the model without offload"):
            save_cache(HippocampusCache(model.config, WINDOW), offloaded, tmp_path / "cache")


def test_padding_is_where_the_layers_keys_are():
    """Devices differ from layer to layer; meta stands for another one."""
    keys, padding = torch.empty(2, 1, 1, 4, device="meta"), torch.tensor([0, 3])
    for known_before in (True, False):
        layer = HippocampusLayer(WINDOW)
        if known_before:
            layer.set_padding(padding)
        layer.update(keys, keys)
        layer.set_padding(padding if not known_before else layer.padding)
        assert layer.positions(0, 5).device.type == "meta"
