"""Bases on which AHN is exact are told from those on which it is not, before they are used; files are read whole."""

import json
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, T5Config
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from pipeline.config import MemoryConfig
from pipeline.doctor.families import check_one, format_table
from pipeline.errors import UserError
from pipeline.model.augment import memory_layers
from pipeline.model.base_check import check_family
from pipeline.model.loading import load_base, load_config, load_model
from pipeline.model.small_copy import build_small, small_config
from pipeline.model.supported import sliding_windows
from tests.model.conftest import WINDOW, Base

EXACT = {
    "gemma3_text": (1, 1),
    "cohere2": (1, 1),
    "qwen3_moe": (2, 0),
    "mixtral": (2, 0),
    "glm4_moe": (2, 0),  # its router computes in float32
    "granite": (2, 0),
    "phi": (2, 0),
    "smollm3": (2, 0),
}
REFUSED = {
    "doge": "not exact",
    "diffllama": "not exact in decoding with a cache",
    "gpt_oss": "passes `s_aux`",
    "gemma2": "attn_logit_softcapping",
    "deepseek_v3": "no head_dim",
    "qwen3_next": "linear_attention",
    "llama4_text": "chunked_attention",
    "gemma3": "no hidden_size of a text decoder",
    "falcon": "attention interface",
}


@pytest.fixture(autouse=True)
def nothing_remembered(tmp_path, monkeypatch):
    monkeypatch.setenv("AHN_CACHE_DIR", str(tmp_path / "remembered"))


@pytest.mark.parametrize("family", EXACT)
def test_a_family_that_is_exact_loads_with_the_plain_classs_tensors(family):
    """Through files: experts are stored one by one, and layers keep their own windows."""
    row = check_one(family, CONFIG_MAPPING[family]())
    full, sliding = EXACT[family]
    assert (row.result, row.reason) == ("exact", "")
    assert row.layers == f"{full} full" + (f", {sliding} sliding" if sliding else "")


@pytest.mark.parametrize("family", REFUSED)
def test_a_family_that_is_not_is_refused_in_one_line(family):
    row = check_one(family, CONFIG_MAPPING[family]())
    assert row.result == "refused" and REFUSED[family] in row.reason and "\n" not in row.reason, row
    assert row.reason in format_table([row])


def test_a_difference_in_the_attention_is_found_and_can_be_let_pass(monkeypatch, base_of_family, tmp_path):
    """What AHN leaves out of a family's attention, here a factor on its scores, is found at load."""
    from pipeline.model import hybrid_attention

    plain = hybrid_attention.sink_window_attention
    monkeypatch.setattr(
        hybrid_attention, "sink_window_attention", lambda q, *args, **kwargs: plain(q * 1.0001, *args, **kwargs)
    )
    options = {"memory": MemoryConfig(), "window": WINDOW, "dtype": torch.float32}
    with pytest.raises(UserError, match=r"not exact as sinks \+ window without a memory: .* of the largest logit"):
        load_base(base_of_family.folder, **options)
    load_base(base_of_family.folder, **options, check=False)


def test_what_passed_is_remembered_until_the_config_changes(base_of_family, tmp_path, monkeypatch):
    config = load_config(base_of_family.folder)
    check_family(config)
    (record,) = (tmp_path / "remembered/checked_bases").iterdir()
    assert max(json.loads(record.read_text()).values()) < 1e-9
    monkeypatch.setattr("pipeline.model.base_check._compare", lambda *_: pytest.fail("computed again"))
    start = time.process_time()
    check_family(config)
    assert time.process_time() - start < 0.1
    config.rms_norm_eps *= 2
    with pytest.raises(BaseException, match="computed again"):
        check_family(config)


def test_the_global_random_numbers_stay_as_they_are(base_of_family, tmp_path, monkeypatch):
    """The GPUs', too: a text that is sampled does not depend on whether the base was checked before."""
    monkeypatch.setenv("AHN_CACHE_DIR", str(tmp_path / "cache"))
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda _: pytest.fail("seeds the GPUs"))
    check_family(load_config(base_of_family.folder))
    assert torch.equal(torch.rand(3), expected)


def test_a_user_without_a_home_folder_has_the_base_checked_each_time(base_folders, monkeypatch):
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("AHN_CACHE_DIR", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", no_home)
    check_family(load_config(str(base_folders["qwen2"])))


def test_what_is_no_decoder_is_one_line():
    with pytest.raises(UserError, match="t5: transformers has no decoder language model of this type"):
        check_family(T5Config())


def test_a_config_that_contradicts_itself_is_one_line(base_folders, tmp_path):
    broken = json.loads((base_folders["qwen2"] / "config.json").read_text()) | {"num_hidden_layers": 7}
    (tmp_path / "config.json").write_text(json.dumps(broken))
    with pytest.raises(UserError, match=r"--model .*`layer_types`") as error:
        load_config(str(tmp_path))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["base", "merged"])
def test_files_without_some_of_the_weights_are_refused(kind, base_of_family, tmp_path):
    """transformers would go on with random values in their place."""
    model = base_of_family.load_untrained() if kind == "merged" else base_of_family.load()
    model.save_pretrained(tmp_path / "model")
    path = tmp_path / "model/model.safetensors"
    tensors = load_file(path)
    gone = next(name for name in tensors if name.endswith("mlp.down_proj.weight"))
    del tensors[gone]
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(UserError, match=f"no weights for 1 of the model's tensors .{gone}"):
        load_model(str(tmp_path / "model"), dtype=torch.float32)
    if kind == "merged":
        with pytest.raises(UserError, match="no weights for 1"):
            AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    else:
        with pytest.raises(UserError, match="no weights for 1"):
            load_base(str(tmp_path / "model"), memory=MemoryConfig(), window=WINDOW, dtype=torch.float32)


@torch.no_grad()
@pytest.mark.parametrize("family", ["qwen3_moe", "phi3", "olmo2"])
def test_a_merged_folder_of_any_family_loads(family, tmp_path, tokens):
    """Also experts, which are written one by one."""
    config = small_config(CONFIG_MAPPING[family](), CONFIG_MAPPING[family])
    torch.manual_seed(0)
    build_small(MODEL_FOR_CAUSAL_LM_MAPPING[CONFIG_MAPPING[family]], config).save_pretrained(tmp_path / "base")
    model = Base(str(tmp_path / "base"), "gated_delta_net").load_acting(torch.float32)
    model.save_pretrained(tmp_path / "merged")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    ids = tokens % config.vocab_size
    assert torch.equal(loaded(ids, use_cache=False).logits, model(ids, use_cache=False).logits)
    assert AutoConfig.from_pretrained(tmp_path / "merged").model_type == f"ahn_{family}"


@pytest.mark.parametrize("method", ["gptq", "awq", "bitsandbytes", "compressed-tensors"])
def test_a_quantised_base_is_one_line_before_its_weights_are_read(method, base_of_family, tmp_path):
    settings = json.loads((AutoConfig.from_pretrained(base_of_family.folder)).to_json_string())
    settings["quantization_config"] = {"quant_method": method, "bits": 4}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match=rf"weights are quantised \({method}\).*unquantised checkpoint"):
        load_base(str(tmp_path), memory=MemoryConfig(), window=WINDOW, dtype=torch.float32)


def test_layers_with_a_window_of_their_own_have_no_memory(base_folders):
    base = Base(str(base_folders["gemma3"]), "gated_delta_net")
    model = base.load_untrained()
    assert sliding_windows(model.config) == (None, 20, None) and list(memory_layers(model)) == [0, 2]
    names = {name.split(".")[2] for name, p in model.named_parameters() if p.requires_grad}
    assert names == {"0", "2"}
