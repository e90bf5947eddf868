"""Reading a long prompt takes the memory of a short one: peak resident memory of whole processes."""

import subprocess
import sys

import pytest
from transformers import Qwen2Config, Qwen2ForCausalLM

ABSORB = """
import sys, torch
from pipeline.attention.window import WindowSpec
from pipeline.config import MemoryConfig
from pipeline.model.generation import absorb
from pipeline.model.loading import load_base
torch.set_num_threads(1)
options = {"memory": MemoryConfig(), "window": WindowSpec(32, 992), "dtype": torch.float32, "check": False}
model = load_base(sys.argv[1], **options).eval()
cache = absorb(model, torch.randint(0, 500, (1, int(sys.argv[2]))), prefill_chunk=1024)
print(cache.get_seq_length(), next(int(x.split()[1]) for x in open("/proc/self/status") if x.startswith("VmHWM")))
"""


@pytest.mark.slow
def test_a_prompt_of_32k_tokens_peaks_within_15_percent_of_one_of_8k(tmp_path):
    sizes = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 2,
             "num_key_value_heads": 1, "vocab_size": 500}  # fmt: skip
    Qwen2ForCausalLM(Qwen2Config(**sizes)).save_pretrained(tmp_path)
    peaks = []
    for length in (8_192, 32_768):
        command = [sys.executable, "-c", ABSORB, str(tmp_path), str(length)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=200)
        assert done.returncode == 0, done.stderr[-2000:]
        seen, peak = map(int, done.stdout.split())
        assert seen == length
        peaks.append(peak)
    print(f"peak resident memory: {peaks[0] / 1024:.0f} MiB at 8k, {peaks[1] / 1024:.0f} MiB at 32k")
    assert peaks[1] <= 1.15 * peaks[0]
