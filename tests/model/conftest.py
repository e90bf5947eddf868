"""A tiny base of several families on disk, and AHN models whose memory acts."""

from typing import NamedTuple

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from pipeline.attention.window import WindowSpec
from pipeline.config import MemoryConfig
from pipeline.model.adapter import adapter_state
from pipeline.model.loading import load_base

VOCAB = 131
SIZES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": VOCAB,
    "max_position_embeddings": 512,
    "bos_token_id": None,
    "eos_token_id": None,
}
FAMILIES = {
    "qwen2": (Qwen2ForCausalLM, Qwen2Config(**SIZES, tie_word_embeddings=True)),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config(**SIZES, head_dim=16)),
    "llama": (LlamaForCausalLM, LlamaConfig(**SIZES)),
    "mistral": (MistralForCausalLM, MistralConfig(**SIZES, sliding_window=None)),
    "gemma3": (  # a layer that keeps a sliding window of its own
        Gemma3ForCausalLM,
        Gemma3TextConfig(
            **SIZES,
            head_dim=16,
            sliding_window=20,
            layer_types=["full_attention", "sliding_attention", "full_attention"],
        ),
    ),
}
WINDOW = WindowSpec(num_sink_tokens=4, window_size=12)


CELLS = {"gated_delta_net": 2, "delta_net": 1, "mamba2": 1}  # cell -> write gates a token


class Base(NamedTuple):
    folder: str
    cell: str

    def load(self, dtype=torch.float32):
        """The base as transformers itself loads it."""
        return AutoModelForCausalLM.from_pretrained(self.folder, dtype=dtype).eval()

    def load_untrained(self, dtype=torch.float32, window=WINDOW):
        options = {"memory": MemoryConfig(cell=self.cell), "window": window, "dtype": dtype}
        return load_base(self.folder, **options, check=False).eval()  # test_base_check.py is about the check

    def load_acting(self, dtype=torch.float64, window=WINDOW):
        """An AHN model with random, strong memories; float64 throughout where asked."""
        model = self.load_untrained(dtype if dtype != torch.float64 else torch.float32, window)
        torch.manual_seed(5)
        with torch.no_grad():
            for name, tensor in adapter_state(model).items():
                tensor.normal_(0, 0.05 if name.endswith("position_weight") else 0.5)  # positions are tens
        return model.double() if dtype == torch.float64 else model


@pytest.fixture(scope="session")
def base_folders(tmp_path_factory):
    """A folder for each family."""
    folders = {}
    for family, (model_class, config) in FAMILIES.items():
        folders[family] = tmp_path_factory.mktemp(family) / "base"
        torch.manual_seed(1)
        model = model_class(config)
        for parameter in model.parameters():  # larger than usual: attention that is far from uniform
            if parameter.ndim == 2:
                torch.nn.init.normal_(parameter, std=0.15)
        model.save_pretrained(folders[family])
    return folders


PAIRS = {"qwen2-gated_delta_net", "qwen3-delta_net", "llama-mamba2", "mistral-gated_delta_net", "gemma3-mamba2"}


@pytest.fixture(
    params=[
        pytest.param(pair, marks=() if pair in PAIRS else pytest.mark.drill)
        for pair in (f"{family}-{cell}" for family in FAMILIES for cell in CELLS)
    ]
)
def base(request, base_folders):
    """Each family and each cell in some pair; each family with each cell in the drill."""
    family, cell = request.param.split("-")
    return Base(str(base_folders[family]), cell)


@pytest.fixture(params=FAMILIES)
def base_of_family(request, base_folders):
    """Each family, with one cell, for what does not depend on the cell."""
    return Base(str(base_folders[request.param]), "gated_delta_net")


@pytest.fixture(params=CELLS)
def base_of_cell(request, base_folders):
    """Each cell, with one family of grouped heads, for what does not depend on the family."""
    return Base(str(base_folders["qwen3"]), request.param)


@pytest.fixture
def tokens():
    """[2, 48]; three times the lossless budget."""
    return torch.randint(1, VOCAB, (2, 48), generator=torch.Generator().manual_seed(3))
