"""The recall study's documents, scores, limit and summary, each against a case worked out by hand."""

import json
import resource
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

from pipeline.attention.window import WindowSpec
from pipeline.config import MemoryConfig, RecallBaseConfig, RecallTaskConfig
from pipeline.errors import UserError
from pipeline.evaluation.recall.base import base_folder, curriculum, save_base
from pipeline.evaluation.recall.documents import (
    CARRIED,
    RecallDocuments,
    document_length,
    make_repeats,
    make_tokenizer,
    write_corpus,
)
from pipeline.evaluation.recall.limit import RIDGE, HeadReadout, LeastSquaresMemory, find_readouts, score_limit
from pipeline.evaluation.recall.scoring import (
    GridPoint,
    check_base,
    score_foreign_state,
    score_full,
    score_memory,
    score_memory_off,
)
from pipeline.evaluation.recall.summary import BaseScores, MemoryScores, format_table, interval_over_seeds, summarise
from pipeline.evaluation.writing import writes_to
from pipeline.model.loading import load_base

TASK = RecallTaskConfig(num_keys=9, num_values=7, num_fillers=5, num_sink_tokens=2, window_size=8)
WINDOW = WindowSpec(TASK.num_sink_tokens, TASK.window_size)
CONFIG = Qwen3Config(
    vocab_size=TASK.vocab_size, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, head_dim=16, initializer_range=0.3, tie_word_embeddings=False,
)  # fmt: skip


@pytest.mark.parametrize(("num_facts", "distance"), [(1, 1), (9, 1), (4, 3)])
def test_every_fact_is_asked_once_after_it_was_evicted(num_facts, distance):
    documents = GridPoint(num_facts, distance).documents(TASK, questions=30, seed=0)
    ids, first = documents.input_ids, int(documents.questions[0])
    assert ids.shape == (max(2, -(-30 // num_facts)), document_length(TASK, num_facts, distance))
    assert ids.max() < TASK.vocab_size
    facts, questions = slice(2, 2 + 2 * num_facts), documents.questions
    for row, answers in zip(ids, documents.answers, strict=True):
        pairs = row[facts].reshape(-1, 2)
        assert len(set(pairs[:, 0])) == num_facts
        assert sorted(map(tuple, pairs)) == sorted(zip(row[questions], answers, strict=True))
        assert set(row[facts.stop : first]).isdisjoint(row[facts])
    assert not WINDOW.visible(questions[:, None], np.arange(facts.start, facts.stop)).any()
    assert first - facts.stop == distance * TASK.window_size + CARRIED
    assert not WINDOW.visible(first, np.arange(facts.stop, facts.stop + CARRIED)).any()


MIXED = replace(TASK, mixed_filler=True)


@pytest.mark.parametrize("num_facts", [1, 4, 9])
def test_mixed_filler_is_of_every_kind_and_only_facts_have_a_value_after_a_key(num_facts):
    documents = GridPoint(num_facts, 3).documents(MIXED, questions=60, seed=0)
    ids, facts = documents.input_ids, slice(2, 2 + 2 * num_facts)
    filler = slice(facts.stop, int(documents.questions[0]))
    assert ids.shape == GridPoint(num_facts, 3).documents(TASK, questions=60, seed=0).input_ids.shape
    assert (ids[:, facts] == GridPoint(num_facts, 3).documents(TASK, 60, 0).input_ids[:, facts]).all()
    is_key, is_value = (ids >= 1) & (ids <= 9), (ids > 9) & (ids <= 16)
    is_pair = is_key[:, :-1] & is_value[:, 1:]
    pairs = [*range(facts.start, facts.stop, 2), *documents.questions]
    assert (is_pair == np.isin(np.arange(ids.shape[1] - 1), pairs)).all()
    kinds = is_key[:, filler], is_value[:, filler], ids[:, filler] > 16
    assert [bool(kind.any()) for kind in kinds] == [num_facts < 9, True, True]
    for row in ids:
        assert set(row[filler][row[filler] <= 9]).isdisjoint(row[facts][::2]) and row[filler].min() >= 1


def test_plain_filler_is_that_of_earlier_versions():
    """Taken from the version without `mixed_filler`."""
    ids = GridPoint(2, 1).documents(TASK, questions=2, seed=0).input_ids
    assert ids[0, :14].tolist() == [0, 0, 4, 13, 5, 15, 18, 19, 17, 20, 21, 21, 18, 19]
    assert ids[0, 14:].tolist() == [20, 21, 19, 19, 21, 20, 21, 18, 4, 13, 5, 15]


def test_documents_are_a_function_of_their_seed_and_differ_between_points():
    point = GridPoint(4, 2)
    first, again, other = (point.documents(TASK, 20, seed).input_ids for seed in (0, 0, 1))
    assert (first == again).all() and (first != other).any()
    assert (GridPoint(4, 3).documents(TASK, 20, 0).answers != point.documents(TASK, 20, 0).answers).any()


def test_repeats_are_distinct_tokens_twice():
    ids = make_repeats(TASK, 20, 6, np.random.default_rng(0))
    assert (ids[:, 1:7] == ids[:, 7:]).all() and (ids[:, 0] == 0).all()
    assert all(len(set(row[1:7])) == 6 and row[1:].min() > 0 for row in ids)


def test_the_corpus_tokenises_to_documents_between_the_ends_of_the_grid(tmp_path):
    write_corpus(tmp_path / "corpus.jsonl", TASK, 60, [2, 9], [1, 3], seed=0)
    tokenizer, sizes = make_tokenizer(TASK), set()
    assert tokenizer.get_vocab_size() == TASK.vocab_size
    for line in (tmp_path / "corpus.jsonl").read_text().splitlines():
        ids = np.array(tokenizer.encode(json.loads(line)["text"]).ids)
        num_facts = int(((ids > 0) & (ids <= TASK.num_keys)).sum()) // 2
        num_fillers = int((ids > TASK.num_keys + TASK.num_values).sum())
        assert (ids[:2] == 0).all() and len(ids) == 2 + 4 * num_facts + num_fillers
        documents = RecallDocuments(ids[None], num_facts)
        values = dict(ids[2 : 2 + 2 * num_facts].reshape(-1, 2))
        assert [values[key] for key in ids[documents.questions]] == list(documents.answers[0])
        sizes.add((num_facts, num_fillers))
    facts, fillers = (sorted(set(column)) for column in zip(*sizes, strict=True))
    assert facts == list(range(2, 10)) and 16 <= fillers[0] < 18 and 28 < fillers[-1] <= 32


def test_the_curriculum_ends_with_the_longest_documents_and_the_folder_names_every_setting(tmp_path):
    base = RecallBaseConfig(max_facts=9, max_distance=3)
    stages = curriculum(TASK, base)
    assert [stage.facts for stage in stages] == [0, 4, 8, 9, 9, 9]
    assert [stage.fillers for stage in stages][::5] == [0, 24]
    others = [RecallBaseConfig(max_facts=9), RecallBaseConfig(max_facts=9, max_distance=3, seed=1)]
    folders = {base_folder(tmp_path, TASK, config).name for config in (base, *others)}
    folders |= {base_folder(tmp_path, RecallTaskConfig(), base).name}
    assert len(folders) == 4 and all(name.startswith("qwen3-seed") for name in folders)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A base with random weights, and memories that act."""
    folder = tmp_path_factory.mktemp("recall") / "base"
    torch.manual_seed(0)
    Qwen3ForCausalLM(CONFIG).save_pretrained(folder)
    model = load_base(str(folder), memory=MemoryConfig(), window=WINDOW, dtype=torch.float32).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".ahn." in name:
                parameter.copy_(torch.randn_like(parameter) * 0.5)
    return model


def test_a_base_that_finds_no_room_is_a_line_and_is_written_whole_later(tmp_path):
    base, model, tokenizer = tmp_path / "bases/base", Qwen3ForCausalLM(CONFIG), make_tokenizer(TASK)
    base.parent.mkdir()
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, unlimited[1]))
    try:
        with pytest.raises(UserError, match=r"cannot be written: .*large.*; what") as caught, writes_to(tmp_path):
            save_base(base, model, tokenizer, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    assert "\n" not in str(caught.value) and not base.exists()
    save_base(base, model, tokenizer, {"seed": 1})
    written = Qwen3ForCausalLM.from_pretrained(base)
    assert all(torch.equal(a, b) for a, b in zip(written.parameters(), model.parameters(), strict=True))
    assert [path.name for path in base.parent.iterdir()] == ["base"]
    assert AutoTokenizer.from_pretrained(base)("sink key0 value0 fill4").input_ids == [0, 1, 10, 21]


def answered_with(model, documents, **options):
    """The documents, one question each, with the model's own answer in the place of the right one."""
    ids = torch.from_numpy(documents.input_ids.copy())
    with torch.no_grad():
        ids[:, -1] = model(ids, use_cache=False, **options).logits[:, -2].argmax(-1)
    return RecallDocuments(ids.numpy(), 1)


def test_each_score_is_that_of_its_attention(model):
    documents = GridPoint(1, 3).documents(TASK, 40, 0)
    base = Qwen3ForCausalLM.from_pretrained(model.name_or_path).eval()
    scores = (score_full, score_memory, score_memory_off)
    answered = (
        answered_with(base, documents),
        answered_with(model, documents),
        answered_with(model, documents, use_memory=False),
    )
    table = np.array([[score(model, d) for d in answered] for score in scores])
    assert (table.diagonal() == 1).all()
    assert (table[~np.eye(3, dtype=bool)] < 0.9).all()


def test_the_foreign_state_is_the_memory_of_the_document_before(model):
    documents = GridPoint(1, 3).documents(TASK, 40, 0)
    own = answered_with(model, documents)
    assert score_foreign_state(model, own) < 0.9
    alike = RecallDocuments(np.repeat(own.input_ids[:1], 3, 0), 1)  # another document's state is then one's own
    assert score_foreign_state(model, alike) == 1


def test_the_limit_is_least_squares_of_the_facts_tokens():
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 11, heads, 6, generator=generator, dtype=torch.float64) for heads in (4, 2, 2))
    heads = [HeadReadout(0, 1.0), HeadReadout(1, 8.0), HeadReadout(), HeadReadout(2, 2.0)]
    output = LeastSquaresMemory(4, heads)(q, k, v)
    for head, (written, gain) in enumerate([((0, 2, 4, 6), 1), ((1, 3, 5, 7), 8), ((), 0), ((2, 4, 6, 8), 2)]):
        keys = torch.nn.functional.normalize(k[1, written, head // 2], dim=-1)
        rows = torch.cat([keys, RIDGE**0.5 * torch.eye(6)]), torch.cat([v[1, written, head // 2], torch.zeros(6, 6)])
        wanted = gain * torch.nn.functional.normalize(q[1, :, head], dim=-1) @ torch.linalg.lstsq(*rows).solution
        torch.testing.assert_close(output[1, :, head], wanted, rtol=1e-5, atol=1e-5)


def test_readouts_are_the_best_of_their_choices_and_the_memories_stay(model):
    documents = GridPoint(3, 2).documents(TASK, 60, 0)
    before, memories = score_memory(model, documents), [layer.ahn.fn for layer in model.get_decoder().layers]
    nothing = dict.fromkeys([(layer, head) for layer in range(2) for head in range(4)], HeadReadout())
    assert score_limit(model, documents, nothing) == score_memory_off(model, documents)
    best = find_readouts(model, documents)
    assert score_limit(model, documents, best) > score_limit(model, documents, nothing)
    assert [layer.ahn.fn for layer in model.get_decoder().layers] == memories
    assert score_memory(model, documents) == before


def test_recovered_is_the_share_of_what_the_window_loses_with_its_interval_over_seeds():
    base = [[BaseScores(full=1.0, window=0.2, limit=0.9)], [BaseScores(full=0.9, window=0.1, limit=0.7)]]
    cells = {"delta_net": [[MemoryScores(0.6, 0.2, 0.1)], [MemoryScores(0.3, 0.1, 0.2)]]}
    (row,) = summarise([GridPoint(4, 2)], base, cells)
    assert (row["full"], row["window"], row["limit"]) == pytest.approx((0.95, 0.15, 0.8))
    found = row["cells"]["delta_net"]
    assert found["recovered_by_seed"] == pytest.approx([0.5, 0.25]) and found["recovered"] == pytest.approx(0.375)
    assert found["recovered_ci95"] == pytest.approx((0.375 - 12.7062 * 0.125, 0.375 + 12.7062 * 0.125), abs=1e-4)
    assert (found["memory"], found["memory_off"], found["foreign_state"]) == pytest.approx((0.45, 0.15, 0.15))
    table = format_table([row])
    assert "95.0%" in table and "37.5%" in table
    assert interval_over_seeds([0.5]) is None
    assert interval_over_seeds([0.4, 0.5, 0.6]) == pytest.approx((0.2516, 0.7484), abs=1e-4)


@pytest.mark.parametrize(("full", "window", "accepted"), [(0.95, 0.1, True), (0.94, 0.0, False), (1.0, 0.11, False)])
def test_a_base_is_accepted_where_only_distance_makes_it_fail(full, window, accepted):
    if accepted:
        check_base(full, window, GridPoint(4, 2), "tiny")
        return
    with pytest.raises(UserError, match=f"4 facts, 2 windows.*{full:.1%}.*{window:.1%}"):
        check_base(full, window, GridPoint(4, 2), "tiny")
