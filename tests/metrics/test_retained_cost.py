"""What retained tokens cost, against torch's count of products, the pairs of an enumerated text, and a real cache."""

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import Qwen2Config, Qwen2ForCausalLM

from pipeline.ahn.retention_scorer import RetentionScorer
from pipeline.attention.received import received_mass
from pipeline.attention.retained_attention import drop_positions, retained_attention
from pipeline.attention.retention import drop_order
from pipeline.attention.window import Document, WindowSpec
from pipeline.config import AccountingConfig, MemoryConfig, parse_cli
from pipeline.errors import UserError
from pipeline.metrics import accounting
from pipeline.metrics.accounting import compute_account
from pipeline.metrics.architecture import attention_flops, parse_architecture
from pipeline.metrics.retained_cost import choice_flops, received_flops, score_flops
from pipeline.metrics.step_flops import student_flops
from pipeline.model.cache import HippocampusCache
from pipeline.model.loading import load_base

SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4,
         "num_key_value_heads": 2, "vocab_size": 50}  # fmt: skip
A = parse_architecture(SIZES, "here")
WINDOW = WindowSpec(16, 80, 24, 3)
LENGTH = 600
REACH = WINDOW.num_sink_tokens + WINDOW.window_size


def counted(function) -> int:
    """Multiplications and additions of the matrix products that torch sees."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        function()
    return counter.get_total_flops()


def test_scores_are_what_torch_counts() -> None:
    scorer, hidden = RetentionScorer(A.hidden_size, 2), torch.randn(1, LENGTH - REACH, A.hidden_size)
    assert score_flops(A, LENGTH, WINDOW) == counted(lambda: scorer.score_hidden(hidden))


def test_received_mass_is_of_the_sampled_queries_alone() -> None:
    query, key = np.arange(LENGTH)[:, None], np.arange(LENGTH)[None]
    sampled = query % WINDOW.sampling_stride == 0
    products = int((WINDOW.visible(query, key) & sampled).sum()) * 2 * A.head_dim * A.num_attention_heads
    found = received_flops(A, LENGTH, WINDOW)
    assert found == pytest.approx(products, rel=0.02)
    q, k = torch.randn(1, 4, LENGTH, A.head_dim), torch.randn(1, 2, LENGTH, A.head_dim)
    # Blocks of keys reach up to twice as far as their queries' window.
    assert found < counted(lambda: received_mass(q, k, WINDOW, scale=1.0)) < 2.5 * found


def test_attention_counts_the_tokens_that_are_retained() -> None:
    order = drop_order(torch.randn(1, 2, LENGTH - REACH), WINDOW.num_retained_tokens, WINDOW.decision_interval)
    drops = drop_positions(order, WINDOW, LENGTH, never=LENGTH)
    query, key = torch.arange(LENGTH)[:, None], torch.arange(LENGTH)
    pairs = int(((key <= query) & (query < drops[..., None, :])).sum()) // 2  # of a key-value head
    found = attention_flops(A, LENGTH, WINDOW.lossless_budget)
    assert found == pytest.approx(pairs * 4 * A.head_dim * A.num_attention_heads, rel=0.02)
    assert found > 1.15 * attention_flops(A, LENGTH, REACH)
    q, k = torch.randn(1, 4, LENGTH, A.head_dim), torch.randn(1, 2, LENGTH, A.head_dim)
    with sdpa_kernel(SDPBackend.MATH):  # torch counts no products inside the CPU's own kernel
        # A block of queries multiplies what any of them sees: here all that is kept and 128 tokens more.
        assert found < counted(lambda: retained_attention(q, k, k, WINDOW, order, scale=1.0)) < 3 * found


def test_the_mixer_has_the_wider_windows_figure_and_the_choice_on_top() -> None:
    for length, rows in ((LENGTH, 1), (90, 3)):
        wide = compute_account(A, None, length, WindowSpec(16, 80 + WINDOW.num_held), rows=rows)
        found = compute_account(A, None, length, WINDOW, rows=rows)
        assert found.choice_flops == rows * 3 * choice_flops(A, length, WINDOW) > 0 == wide.choice_flops
        assert found.mixer_flops.ahn - wide.mixer_flops.ahn == found.choice_flops
        assert found.cache_bytes == wide.cache_bytes and found.kept_bytes > wide.kept_bytes
    assert compute_account(A, "mamba2", LENGTH, WINDOW).mixer_flops.ahn > found.mixer_flops.ahn


def test_a_training_step_computes_the_choice_once_and_attention_three_times() -> None:
    wide = WindowSpec(16, 80 + WINDOW.num_held)
    one, other = (student_flops(A, "mamba2", [Document(0, 0, LENGTH, w)], 5) for w in (WINDOW, wide))
    assert one - other == 3 * choice_flops(A, LENGTH, WINDOW)
    assert student_flops(A, "mamba2", [Document(0, 0, 90, WINDOW)], 0) == 0


@pytest.mark.parametrize("length", [90, 100, 123, 200])
@pytest.mark.parametrize("memory", ["on", "off"])
def test_kept_bytes_are_those_of_a_real_cache(length, memory, tmp_path) -> None:
    Qwen2ForCausalLM(Qwen2Config(**SIZES)).save_pretrained(tmp_path)
    model = load_base(str(tmp_path), memory=MemoryConfig(cell="mamba2"), window=WINDOW, dtype=torch.bfloat16)
    cache = HippocampusCache(model.config, WINDOW, memory)
    with torch.no_grad():
        model(torch.arange(2 * length).view(2, -1) % 50, past_key_values=cache)
    cell = "mamba2" if memory == "on" else None
    account = compute_account(A, cell, length, WINDOW, bytes_per_element=2, rows=2)
    held = sum(x.numel() * x.element_size() for layer in cache.layers for x in layer.tensors().values())
    assert held == account.kept_bytes
    with torch.no_grad():  # token by token, too
        for token in range(60):
            model(torch.full((2, 1), token % 50), past_key_values=cache, logits_to_keep=1)
    account = compute_account(A, cell, length + 60, WINDOW, bytes_per_element=2, rows=2)
    if length + 60 > WINDOW.lossless_budget:
        assert cache.num_bytes() == account.kept_bytes


def test_the_command_counts_what_is_retained(monkeypatch, capsys) -> None:
    command = ["accounting", "--length", "128000", "--bytes_per_element", "2"]
    printed = []
    for flags in ([], ["--num_retained_tokens", "1024", "--decision_interval", "32"]):
        monkeypatch.setattr("sys.argv", [*command, *flags])
        accounting.main()
        printed.append(capsys.readouterr().out)
    assert "R = 32,640\n" in printed[0] and "kept here         1.40 GB" in printed[0] and "choice" not in printed[0]
    assert "R = 32,640, M = 1,024, C = 32\n" in printed[1] and "kept here         1.48 GB" in printed[1]
    assert "published" not in printed[1] and "choice of tokens  0.001e15 FLOPs" in printed[1]


def test_the_command_s_flags() -> None:
    config = parse_cli(AccountingConfig, ["--num_retained_tokens", "64", "--decision_interval", "8"])
    assert (config.num_retained_tokens, config.decision_interval) == (64, 8)
    with pytest.raises(UserError, match=r"^--decision_interval 8: goes with --num_retained_tokens above 0$"):
        parse_cli(AccountingConfig, ["--decision_interval", "8"])
