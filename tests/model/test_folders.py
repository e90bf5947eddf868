"""Adapters, merged folders, and what is refused."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from pipeline.attention.window import WindowSpec
from pipeline.config import MemoryConfig
from pipeline.errors import UserError
from pipeline.model.adapter import adapter_state, base_fingerprint, save_adapter
from pipeline.model.export import export_published, merge_adapter
from pipeline.model.files import ADAPTER_CONFIG, resolve_model
from pipeline.model.loading import load_base, load_model, set_window
from pipeline.model.supported import check_supported
from pipeline.teacher.fingerprint import teacher_fingerprint
from pipeline.teacher.teacher_model import check_teacher
from tests.model.conftest import SIZES, WINDOW, Base


def save(model, base, folder):
    info = {
        "base_model": base.folder,
        "base_fingerprint": base_fingerprint(base.folder),
        "memory": {"cell": base.cell, "init": "published"},
        "num_sink_tokens": WINDOW.num_sink_tokens,
        "window_size": WINDOW.window_size,
        "training": {"steps": 3},
    }
    save_adapter(folder, adapter_state(model), info)
    return folder


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_adapter_round_trips_to_the_last_bit(base, tokens, tmp_path, dtype):
    model = base.load_acting(dtype)
    loaded = load_model(str(save(model, base, tmp_path / "adapter")), dtype=dtype).eval()
    for name, value in adapter_state(model).items():
        assert value.dtype == torch.float32
        assert torch.equal(loaded.get_parameter(name), value)
    assert torch.equal(loaded(tokens, use_cache=False).logits, model(tokens, use_cache=False).logits)
    assert [n for n, p in loaded.named_parameters() if p.requires_grad] == list(adapter_state(model))


def test_saving_again_replaces_the_adapter_and_leaves_nothing_else(base, tmp_path):
    model, folder = base.load_acting(torch.float32), tmp_path / "adapter"
    save(model, base, folder)
    with torch.no_grad():
        next(iter(adapter_state(model).values())).zero_()
    save(model, base, folder)
    name, value = next(iter(adapter_state(load_model(str(folder), dtype=torch.float32)).items()))
    assert not value.any(), name
    assert sorted(f.name for f in folder.iterdir()) == ["ahn_config.json", "model.safetensors"]


LOAD_MERGED = """
import sys, torch, pipeline
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
with torch.no_grad():
    logits = model(torch.tensor([eval(sys.argv[2])]), use_cache=False).logits
torch.save((type(model).__name__, model.config.ahn, str(model.dtype), logits), sys.argv[3])
assert all(p.dtype == torch.float32 for n, p in model.named_parameters() if ".ahn." in n)
"""


@torch.no_grad()
@pytest.mark.parametrize("family", ["qwen2", "gemma3"])
def test_a_merged_folder_loads_with_auto_classes_in_a_fresh_process(family, base_folders, tokens, tmp_path):
    base = Base(str(base_folders[family]), "gated_delta_net")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({"a": 0, "b": 1}, unk_token="a")))
    tokenizer.save_pretrained(base.folder)
    model = base.load_acting(torch.bfloat16)
    adapter = save(model, base, tmp_path / "adapter")
    merge_adapter(adapter, tmp_path / "merged", dtype=torch.bfloat16)
    result = tmp_path / "result.pt"
    command = [sys.executable, "-c", LOAD_MERGED, tmp_path / "merged", str(tokens[0].tolist()), result]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    name, ahn, dtype, logits = torch.load(result, weights_only=True)
    assert name.startswith("AHN")
    assert (ahn["num_sink_tokens"], ahn["window_size"], dtype) == (4, 12, "torch.bfloat16")
    assert torch.equal(logits, model(tokens[:1], use_cache=False).logits)
    with pytest.raises(UserError, match="already exists"):
        merge_adapter(adapter, tmp_path / "merged", dtype=torch.bfloat16)


def test_another_base_is_refused(base, tmp_path):
    adapter = save(base.load_acting(torch.float32), base, tmp_path / "adapter")
    other = base.load()
    with torch.no_grad():
        next(other.parameters()).mul_(1.0001)
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(UserError, match="fingerprint"):
        load_model(str(adapter), dtype=torch.float32, base=str(tmp_path / "other"))
    with pytest.raises(UserError, match="nowhere"):
        load_model(str(adapter), dtype=torch.float32, base=str(tmp_path / "nowhere"))


def test_a_torn_adapter_is_refused(base, tmp_path):
    adapter = save(base.load_acting(torch.float32), base, tmp_path / "adapter")
    weights = adapter / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(UserError, match="adapter"):
        load_model(str(adapter), dtype=torch.float32)
    (adapter / ADAPTER_CONFIG).write_text(json.dumps({"format_version": 99}))
    with pytest.raises(UserError):
        load_model(str(adapter), dtype=torch.float32)


@torch.no_grad()
def test_the_window_of_a_loaded_model_can_be_changed(base, tokens):
    model = base.load_acting()
    set_window(model, WindowSpec(0, 48))
    torch.testing.assert_close(model(tokens).logits, base.load().double()(tokens).logits, rtol=0, atol=1e-9)


def test_memories_are_a_function_of_the_seed(base):
    def state(seed):
        model = load_base(
            base.folder, memory=MemoryConfig(cell=base.cell), window=WINDOW, dtype=torch.float32, seed=seed
        )
        return adapter_state(model)

    first, again, other = state(1), state(1), state(2)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)
    gates = [value for name, value in first.items() if name.endswith("g_proj.weight")]
    assert not torch.equal(gates[0], gates[1])


@pytest.mark.parametrize(
    ("model_class", "config", "reason"),
    [
        (MistralForCausalLM, MistralConfig(**SIZES, sliding_window=16), "sliding_window = 16"),
        (Gemma2ForCausalLM, Gemma2Config(**SIZES, head_dim=16), "attn_logit_softcapping"),
        (GPT2LMHeadModel, GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=50), "gpt2"),
    ],
    ids=["mistral-sliding", "gemma2", "gpt2"],
)
def test_a_base_that_cannot_be_augmented_is_refused_by_reason(model_class, config, reason, tmp_path):
    model_class(config).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=reason):
        load_base(str(tmp_path), memory=MemoryConfig(), window=WINDOW, dtype=torch.float32)


DYNAMIC = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4}
LONGROPE = {"rope_type": "longrope", "factor": 32.0, "original_max_position_embeddings": 16, "rope_theta": 1e4,
            "short_factor": [1.0] * 8, "long_factor": [2.0] * 8}  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"rope_parameters": DYNAMIC}, "dynamic"),
        ({"rope_parameters": LONGROPE}, "longrope"),
        ({"rope_scaling": {"type": "dynamic", "factor": 4.0}}, "dynamic"),
        ({"rope_parameters": {"full_attention": DYNAMIC, "sliding_attention": {"rope_type": "default"}}}, "dynamic"),
    ],
)
def test_rope_that_depends_on_the_length_of_a_forward_is_refused(fields, name, tmp_path):
    """For training and adapters, and by the teacher's job, which never attaches a memory."""
    LlamaForCausalLM(LlamaConfig(**SIZES)).save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())
    settings.pop("rope_parameters")
    (tmp_path / "config.json").write_text(json.dumps({**settings, **fields}))
    message = f"^llama: config.json sets RoPE of type {name}, whose .*default, linear, yarn, llama3"
    if "full_attention" in fields.get("rope_parameters", {}):  # of a config that transformers has for other families
        config = LlamaConfig(**SIZES)
        config.rope_parameters = fields["rope_parameters"]
        model = LlamaForCausalLM(LlamaConfig(**SIZES))
        with pytest.raises(UserError, match=message):
            check_supported(model, model.get_decoder(), config)
        return
    with pytest.raises(UserError, match=message):
        load_base(str(tmp_path), memory=MemoryConfig(), window=WINDOW, dtype=torch.float32)
    with pytest.raises(UserError, match=message):
        check_teacher(str(tmp_path))


@pytest.mark.parametrize(
    "damage",
    [
        lambda raw: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
        lambda raw: b"",
        lambda raw: raw[:5],
        lambda raw: raw[:200],
        lambda raw: raw[:-1],
        lambda raw: raw + b"x",
        lambda raw: raw[:8] + b"[" + raw[9:],
        lambda raw: (2).to_bytes(8, "little") + b"[]",
    ],
)
def test_weights_that_are_not_whole_are_named_before_anything_is_loaded(damage, base_of_family, tmp_path):
    folder = shutil.copytree(base_of_family.folder, tmp_path / "base")
    path = folder / "model.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    asks = [
        lambda: base_fingerprint(str(folder)),
        lambda: teacher_fingerprint(str(folder)),
        lambda: resolve_model(folder, None),
        lambda: load_base(str(folder), memory=MemoryConfig(), window=WINDOW, dtype=torch.float32),
        lambda: load_model(str(folder), dtype=torch.float32),
    ]
    for ask in asks:
        with pytest.raises(UserError, match=r"model.safetensors \(\d+ bytes\) is no whole safetensors file .*git lfs"):
            ask()


def test_every_byte_of_the_weights_makes_another_teacher(base_of_family, tmp_path):
    """Also where the probes that tell bases apart do not look."""
    folder = shutil.copytree(base_of_family.folder, tmp_path / "base")
    before, path = teacher_fingerprint(str(folder)), folder / "model.safetensors"
    original = path.read_bytes()
    for position in np.linspace(len(original) // 2, len(original) - 1, 40).astype(int).tolist():
        path.write_bytes(original[:position] + bytes([original[position] ^ 1]) + original[position + 1 :])
        assert teacher_fingerprint(str(folder)) != before
    path.write_bytes(original)
    assert teacher_fingerprint(str(folder)) == before


@torch.no_grad()
def test_the_published_layout_round_trips(base, tokens, tmp_path):
    """Keys of the published checkpoints, GatedDeltaNet's unused D included; the base must be named."""
    model = base.load_acting(torch.float32)
    export_published(save(model, base, tmp_path / "adapter"), tmp_path / "published")
    header = load_file(tmp_path / "published" / "model.safetensors")
    first = {name.removeprefix("model.layers.0.ahn.fn.") for name in header if ".layers.0." in name}
    delta_net = {"b_proj.weight", "g_proj.weight", "o_norm.weight", "o_proj.weight"}
    assert (
        first
        == {
            "gated_delta_net": delta_net | {"A_log", "D", "dt_bias", "a_proj.weight"},
            "delta_net": delta_net,
            "mamba2": {"A_log", "dt_bias", "dt_proj.bias", "dt_proj.weight", "g_proj.bias", "g_proj.weight"}
            | {"norm.weight", "o_proj.weight"},
        }[base.cell]
    )
    with pytest.raises(UserError, match="give --base"):
        load_model(str(tmp_path / "published"), dtype=torch.float32)
    loaded = load_model(str(tmp_path / "published"), dtype=torch.float32, base=base.folder)
    assert (loaded.config.ahn["num_sink_tokens"], loaded.config.ahn["window_size"]) == (128, 32_640)
    set_window(loaded, WINDOW)
    assert torch.equal(loaded(tokens).logits, model(tokens).logits)


def test_an_adapter_on_a_base_of_other_sizes_names_the_tensor(base_of_family, tmp_path):
    base = base_of_family
    export_published(save(base.load_acting(torch.float32), base, tmp_path / "adapter"), tmp_path / "published")
    Qwen2ForCausalLM(Qwen2Config(**{**SIZES, "hidden_size": 32})).save_pretrained(tmp_path / "other")
    with pytest.raises(UserError, match=r"model\.layers\.0\.ahn\.fn\..* is \[4, 64\] there, \[4, 32\] here"):
        load_model(str(tmp_path / "published"), dtype=torch.float32, base=str(tmp_path / "other"))


@torch.no_grad()
def test_bases_with_shards_scaled_rope_and_attention_biases(tokens, tmp_path):
    rope = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128, "rope_theta": 10000.0}
    config = LlamaConfig(**SIZES, rope_parameters=rope, attention_bias=True, tie_word_embeddings=True)
    LlamaForCausalLM(config).save_pretrained(tmp_path, max_shard_size="50KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    base = Base(str(tmp_path), "gated_delta_net")
    model, plain = base.load_acting(torch.float32), base.load()
    assert torch.equal(model(tokens[:, :16]).logits, plain(tokens[:, :16]).logits)
    assert base_fingerprint(base.folder) == base_fingerprint(base.folder)
    loaded = load_model(str(save(model, base, tmp_path / "adapter")), dtype=torch.float32)
    assert torch.equal(loaded(tokens).logits, model(tokens).logits)
