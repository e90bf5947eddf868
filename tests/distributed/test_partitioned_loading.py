"""A base that ZeRO-3 partitions while it is read: the same values, and no rank has it whole."""

import json
from pathlib import Path

import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from tests.distributed import loading_cases
from tests.distributed.processes import run_ranks

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """About 370 MB in float32, of which no tensor takes more than 12 MB."""
    folder, sizes = tmp_path_factory.mktemp("base") / "model", {"hidden_size": 1024, "intermediate_size": 2816}
    heads = {"num_attention_heads": 8, "num_key_value_heads": 2, "num_hidden_layers": 8}
    torch.manual_seed(0)
    Qwen2ForCausalLM(Qwen2Config(vocab_size=2000, max_position_embeddings=64, **sizes, **heads)).save_pretrained(folder)
    return folder


def load(base: Path, folder: Path, way: str, num_ranks: int, dtype: str = "float32") -> list[dict]:
    folder.mkdir()
    script = Path(loading_cases.__file__)
    finished = run_ranks(script, [base, folder, way, dtype], folder, num_ranks=num_ranks, timeout=120)
    assert all(f.returncode == 0 for f in finished), finished[0].output[-3000:]
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(num_ranks)]


def test_more_ranks_take_less_memory_each_and_hold_the_same_values(base, tmp_path):
    whole = load(base, tmp_path / "whole", "whole", 1)[0]
    peaks = {}
    for num_ranks in (2, 4):
        facts = load(base, tmp_path / str(num_ranks), "partitioned", num_ranks)
        for rank, fact in enumerate(facts):
            assert fact["held_bytes"] < 1.1 * whole["held_bytes"] / num_ranks + (8 << 20)
            for name, (dtype, digest, _) in whole["parameters"].items():
                assert fact["parameters"][name] == [dtype, digest, ".ahn." not in name], (rank, name)
        peaks[num_ranks] = [fact["peak_bytes"] for fact in facts]
        print(num_ranks, "ranks:", [peak >> 20 for peak in peaks[num_ranks]], "MiB")
    # The first rank's count has the pages of the file, which the system takes back when it needs them. Beside its part
    # a rank has the largest tensor a few times over, and 30 MiB of gloo's.
    others = peaks[2][1:] + peaks[4][1:]
    assert max(others) < 0.7 * whole["held_bytes"] and max(peaks[4][1:]) < 0.7 * min(peaks[2][1:])
    assert all(peak < whole["held_bytes"] / num + (90 << 20) for num in (2, 4) for peak in peaks[num][1:])


def test_a_base_read_in_another_dtype(base, tmp_path):
    whole = load(base, tmp_path / "whole", "whole", 1, "bfloat16")[0]["parameters"]
    found = load(base, tmp_path / "parts", "partitioned", 2, "bfloat16")[1]["parameters"]
    assert {name: fact[:2] for name, fact in found.items()} == {name: fact[:2] for name, fact in whole.items()}
    assert {dtype for name, (dtype, *_) in found.items() if ".ahn." in name} == {"torch.float32"}
