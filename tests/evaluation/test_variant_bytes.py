"""What is said of a variant's bytes, against what its cache holds."""

from dataclasses import replace

import pytest
import torch

from pipeline.config.variants import NAMED
from pipeline.evaluation.reader import Reader
from pipeline.evaluation.variant_bytes import count_bytes
from pipeline.model.loading import load_model
from tests.tiny_models import TINY_WINDOW, make_adapter

RETAINING = replace(TINY_WINDOW, num_retained_tokens=6, decision_interval=3)
VARIANTS = (*NAMED, "wider6", "retained6", "retained6_ahn", "random6", "received6")


@pytest.fixture(scope="module")
def adapter(folder, tmp_path_factory):
    return make_adapter(tmp_path_factory.mktemp("counted") / "adapter", folder / "base", RETAINING)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_bytes_are_those_of_the_cache(adapter, dtype) -> None:
    model = load_model(str(adapter), dtype=dtype).eval()
    for variant in VARIANTS:
        reader = Reader(model, variant, TINY_WINDOW, 16, 4.0, RETAINING.decision_interval)
        found, cache = count_bytes(reader), reader.new_cache()
        if variant in ("full", "full_yarn"):
            assert (found.tokens, found.lossless_bytes, found.side_bytes, found.state_bytes) == (None, None, 0, 0)
            continue
        reader.read(torch.arange(2, 70), cache)
        for layer in cache.layers:
            held = {name: x.numel() * x.element_size() for name, x in layer.tensors().items()}
            whole = found.lossless_bytes + found.side_bytes + found.state_bytes
            assert whole == sum(held.values()), variant
            if not variant.startswith("compressive"):
                assert found.tokens == layer.keys.shape[2] and found.state_bytes == held.get("state", 0), variant
                assert found.lossless_bytes == held["keys"] + held["values"], variant
    wide, chosen = (count_bytes(Reader(model, v, TINY_WINDOW, 16, 4.0, 3)) for v in ("wider6", "retained6"))
    assert (wide.tokens, wide.lossless_bytes) == (chosen.tokens, chosen.lossless_bytes)
