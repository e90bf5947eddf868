"""The recall study of memories that retain tokens: each score is that of its attention; foreign tokens, bytes."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from pipeline.attention.window import Document, WindowSpec
from pipeline.config import MemoryConfig, RecallStudyConfig, RecallTaskConfig
from pipeline.evaluation.reader import Reader
from pipeline.evaluation.recall.documents import RecallDocuments
from pipeline.evaluation.recall.retained import count_layer_bytes
from pipeline.evaluation.recall.scoring import (
    GridPoint,
    roll_retained,
    score_foreign_state,
    score_memory,
    score_memory_off,
    score_variant,
)
from pipeline.evaluation.recall.summary import BaseScores, LayerBytes, RetainedScores, summarise, write_results
from pipeline.model.cache import HippocampusCache
from pipeline.model.loading import load_base, load_model
from tests.tiny_models import TINY_WINDOW, make_adapter

TASK = RecallTaskConfig(num_keys=9, num_values=7, num_fillers=5, num_sink_tokens=2, window_size=8, mixed_filler=True)
WINDOW = WindowSpec(TASK.num_sink_tokens, TASK.window_size, num_retained_tokens=4, decision_interval=2)
WIDER = WindowSpec(TASK.num_sink_tokens, TASK.window_size + WINDOW.num_held)
CONFIG = Qwen3Config(
    vocab_size=TASK.vocab_size, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, head_dim=16, initializer_range=0.3, tie_word_embeddings=False,
)  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A base with random weights, memories that act, and scorers that choose."""
    folder = tmp_path_factory.mktemp("recall") / "base"
    torch.manual_seed(0)
    Qwen3ForCausalLM(CONFIG).save_pretrained(folder)
    model = load_base(str(folder), memory=MemoryConfig(), window=WINDOW, dtype=torch.float32).eval()
    with torch.no_grad():
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            if ".ahn." in name:
                tensor.copy_(torch.randn_like(tensor) * 0.5)
    return model


@pytest.fixture(scope="module")
def documents():
    return GridPoint(1, 3).documents(TASK, 40, 0)


def answered_with(model, documents, window, use_memory):
    """The documents, one question each, with the model's own answer in the place of the right one."""
    ids = torch.from_numpy(documents.input_ids.copy())
    scopes = [Document(row, 0, ids.shape[1], window) for row in range(len(ids))]
    with torch.no_grad():
        ids[:, -1] = model(ids, documents=scopes, use_memory=use_memory).logits[:, -2].argmax(-1)
    return RecallDocuments(ids.numpy(), 1)


def test_each_score_is_that_of_its_attention(model, documents):
    attention = [(WINDOW, True), (WINDOW, False), (WIDER, False), (WINDOW.without_retained, False)]
    answered = [answered_with(model, documents, *kind) for kind in attention]
    scores = [score_memory, *(lambda m, d, kind=kind: score_variant(m, d, kind, 0) for kind in ("retained4", "wider4"))]
    table = np.array([[score(model, d) for d in answered] for score in (*scores, score_memory_off)])
    assert (table.diagonal() == 1).all()
    assert (table[~np.eye(4, dtype=bool)] < 0.95).all()
    assert score_variant(model, answered[0], "retained4_ahn", 0) == 1


def test_random_tokens_are_those_of_the_seed_and_not_the_scorers(model, documents):
    own = answered_with(model, documents, WINDOW, False)
    scores = [score_variant(model, own, "random4", seed) for seed in (0, 1, 2, 3, 0)]
    assert scores[0] == scores[-1] and len(set(scores)) > 1 and max(scores) < 0.95


def test_the_foreign_memory_is_that_of_the_document_before(model, documents):
    own = answered_with(model, documents, WINDOW, True)
    assert score_foreign_state(model, own) < 0.9
    alike = RecallDocuments(np.repeat(own.input_ids[:1], 3, 0), 1)
    assert score_foreign_state(model, alike) == 1


@pytest.mark.parametrize("num_tokens", [13, 40], ids=["nothing dropped", "much dropped"])
def test_between_sinks_and_window_all_is_of_the_row_before(model, num_tokens):
    ids = torch.from_numpy(GridPoint(4, 3).documents(TASK, 12, 0).input_ids[:3, :num_tokens])
    cache = HippocampusCache(model.config, WINDOW)
    with torch.no_grad():
        model(ids, past_key_values=cache)
    for layer in cache.layers:
        before = {name: x.clone() for name, x in layer.in_order().items()}
        roll_retained(layer)
        after = layer.in_order()
        num_slots = after["keys"].shape[2]
        assert after.keys() == before.keys() and num_slots == min(num_tokens, WINDOW.lossless_budget)
        for name, x in before.items():
            for row in range(3):
                for slot in range(num_slots):
                    is_held = 2 <= slot < num_slots - 8
                    wanted = x[row - 1 if is_held else row, :, slot]
                    assert torch.equal(after[name][row, :, slot], wanted), (name, row, slot)
        assert not torch.equal(before["keys"], after["keys"])


def test_bytes_are_what_the_cache_holds_more_than_without_retained_tokens(folder, tmp_path):
    window = replace(TINY_WINDOW, num_retained_tokens=6, decision_interval=3)
    adapter = make_adapter(tmp_path / "adapter", folder / "base", window)
    model, held = load_model(str(adapter), dtype=torch.float32).eval(), {}
    for variant in ("ahn", "retained6_ahn"):
        reader = Reader(model, variant, TINY_WINDOW, 16, 4.0, 3)
        reader.read(torch.arange(2, 70), cache := reader.new_cache())
        held[variant] = cache.layers[0].num_bytes()
    found = count_layer_bytes(adapter)
    assert found.retained == held["retained6_ahn"] - held["ahn"]
    assert found.retained_bf16 == (6 + 3 - 1) * 2 * 2 * 8 * 2  # tokens, keys and values, heads, width, bytes
    assert found.state == 4 * 8 * 8 * 4


def test_retained_tokens_have_rows_of_their_own_beside_cells_alone(tmp_path):
    config = RecallStudyConfig(output=tmp_path, retained=[32])
    base = [[BaseScores(full=1.0, window=0.2, limit=0.9)], [BaseScores(full=0.9, window=0.1, limit=0.7)]]
    scores = [RetainedScores(0.6, 0.2, 0.1, 0.5, 0.3, 0.4), RetainedScores(0.3, 0.1, 0.2, 0.2, 0.1, 0.3)]
    rows = summarise([GridPoint(4, 2)], base, {}, {32: {"mamba2": [[found] for found in scores]}})
    held = {32: {"mamba2": LayerBytes(35_656, 16_384, 32_768)}}
    table = write_results(config, "tiny", rows, held)
    assert (tmp_path / "recall.txt").read_text() == table + "\n"
    result = json.loads((tmp_path / "recall.json").read_text())
    assert result["bytes"] == {"32": {"mamba2": {"retained": 35_656, "retained_bf16": 16_384, "state": 32_768}}}
    (row,) = result["points"]
    found = row["retained"]["32"]["mamba2"]
    assert row["cells"] == {} and found["recovered_by_seed"] == pytest.approx([0.5, 0.25])
    names = ("memory", "memory_off", "foreign_state", "retained", "wider", "random")
    assert [found[name] for name in names] == pytest.approx([0.45, 0.15, 0.15, 0.35, 0.2, 0.35])
    line = next(line for line in table.splitlines() if "mamba2 + 32" in line)
    assert line.split()[3] == "37.5%" and line.split()[-5:] == ["15.0%", "15.0%", "35.0%", "20.0%", "35.0%"]
    assert "35,656" in table.splitlines()[-1] and "16,384" in table.splitlines()[-1]


def test_cells_alone_are_written_as_before(tmp_path):
    rows = summarise([GridPoint(4, 2)], [[BaseScores(1.0, 0.2, 0.9)]], {})
    table = write_results(RecallStudyConfig(output=tmp_path), "tiny", rows, {})
    assert len(table.splitlines()) == 2
    result = json.loads((tmp_path / "recall.json").read_text())
    assert result.keys() == {"settings", "base", "points"} and "retained" not in result["points"][0]
