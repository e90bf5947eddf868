"""Rows packed without padding by the collators of others: each document as if it were alone. Float64, exact."""

from itertools import accumulate

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import DataCollatorWithFlattening

from pipeline.attention.window import Document
from pipeline.model.cache import HippocampusCache
from pipeline.model.packed_rows import RowArguments, packed_documents
from tests.model.conftest import FAMILIES, WINDOW, Base

_, QWEN3 = FAMILIES["qwen3"]
TOLERANCE = 1e-9
LENGTHS = (1, 20, 6, 1, 17, 3)  # of a budget of 16
ENDS = list(accumulate(LENGTHS))


@pytest.fixture(scope="module")
def base(base_folders):
    return Base(str(base_folders["qwen3"]), "gated_delta_net")


@pytest.fixture(scope="module")
def acting(base):
    return base.load_acting()


@pytest.fixture
def model(acting):
    return acting.eval()


def flatten(row, **options):
    """What the collator makes of the row's documents."""
    features = [{"input_ids": part.tolist()} for part in row.split(LENGTHS)]
    return DataCollatorWithFlattening(return_tensors="pt", **options)(features)


WAYS = {
    "position_ids": {},
    "position_ids from 3": {"position_ids_start": 3},
    "cu_seq_lens": {"return_flash_attn_kwargs": True, "return_position_ids": False},
    "seq_idx": {"return_seq_idx": True, "return_position_ids": False},
    "all": {"return_flash_attn_kwargs": True, "return_seq_idx": True},
}


@pytest.mark.parametrize("way", WAYS)
def test_documents_of_a_flattened_batch_are_each_alone_with_all_gradients(model, tokens, way):
    row = tokens[0]
    batch = flatten(row, **WAYS[way])
    parameters = [p for p in model.parameters() if p.requires_grad]
    packed = model(**batch, use_cache=False).logits
    first = WAYS[way].get("position_ids_start", 0)
    alone = [
        model(part[None], position_ids=torch.arange(first, first + len(part))[None], use_cache=False).logits
        for part in row.split(LENGTHS)
    ]
    torch.testing.assert_close(packed, torch.cat(alone, 1), rtol=0, atol=TOLERANCE)
    assert (packed - model(row[None], use_cache=False).logits).abs().max() > 1e-2
    assert (packed - model.lm_head(
        model.get_decoder()(**_without_labels(batch), use_cache=False, use_memory=False).last_hidden_state
    )).abs().max() > 1e-2  # fmt: skip
    together = torch.autograd.grad(packed.square().sum(), parameters)
    separate = torch.autograd.grad(sum(x.square().sum() for x in alone), parameters)
    for a, e in zip(together, separate, strict=True):
        assert e.any()
        torch.testing.assert_close(a, e, rtol=1e-8, atol=TOLERANCE)


def _without_labels(batch):
    return {name: value for name, value in batch.items() if name != "labels"}


@torch.no_grad()
def test_every_row_of_a_batch_has_documents_of_its_own(model, tokens):
    splits = (LENGTHS, (30, 18))
    position_ids = torch.stack([torch.cat([torch.arange(n) for n in lengths]) for lengths in splits])
    seq_idx = torch.stack([torch.repeat_interleave(torch.tensor(lengths)) for lengths in splits])
    alone = torch.cat([
        torch.cat([model(part[None], use_cache=False).logits for part in row.split(lengths)], 1)
        for row, lengths in zip(tokens, splits, strict=True)
    ])  # fmt: skip
    ones = torch.ones_like(tokens)
    ways = (
        {"position_ids": position_ids},
        {"position_ids": position_ids, "attention_mask": ones},
        {"seq_idx": seq_idx},
    )
    for way in ways:
        torch.testing.assert_close(model(tokens, **way, use_cache=False).logits, alone, rtol=0, atol=TOLERANCE)
    one_way = torch.cat([torch.arange(n) for n in LENGTHS])[None]  # for all rows
    expected = model(tokens, position_ids=one_way.expand(2, -1), use_cache=False).logits
    assert torch.equal(model(tokens, position_ids=one_way, use_cache=False).logits, expected)


@torch.no_grad()
@pytest.mark.parametrize(
    "positions",
    ["01201234", "56734012", "00001234", "11012234", "23456789"],
)
def test_within_the_budget_a_packed_row_is_the_plain_bases(base, model, tokens, positions):
    plain = base.load().double()
    row = {"input_ids": tokens[:1, :8], "position_ids": torch.tensor([[int(p) for p in positions]]), "use_cache": False}
    torch.testing.assert_close(model(**row).logits, plain(**row).logits, rtol=0, atol=TOLERANCE)


@torch.no_grad()
def test_evaluation_that_leaves_use_cache_open_needs_no_cache(model, tokens):
    """As Trainer.evaluate calls it."""
    batch = flatten(tokens[0], return_flash_attn_kwargs=True)
    output = model(**batch)
    assert output.past_key_values is None
    assert torch.equal(output.logits, model(**batch, use_cache=False).logits)
    model.train()
    with torch.enable_grad():
        trained = model(**batch, use_cache=True)  # no cache in training, whatever is asked for
    assert trained.past_key_values is None and torch.equal(trained.logits, output.logits)


@torch.no_grad()
def test_positions_that_start_anywhere_are_one_document(model, tokens):
    """An offset, a row for all, padding of any position, and steps with a cache."""
    expected, shifted = model(tokens, use_cache=False).logits, torch.arange(7, 55)[None]
    documents = [Document(row, 0, 48, WINDOW) for row in range(2)]
    whole = model(tokens, position_ids=shifted, use_cache=False, documents=documents).logits
    assert torch.equal(model(tokens, position_ids=shifted, use_cache=False).logits, whole)
    cache = HippocampusCache(model.config, WINDOW)
    parts = zip(tokens.split([20, 1, 27], 1), shifted.split([20, 1, 27], 1), strict=True)
    steps = [model(part, position_ids=at, past_key_values=cache).logits for part, at in parts]
    torch.testing.assert_close(torch.cat(steps, 1), whole, rtol=0, atol=TOLERANCE)
    mask = torch.ones_like(tokens)
    mask[1, :9] = 0
    for hidden in (0, 1, 40):
        position_ids = (mask.cumsum(-1) - 1).masked_fill(mask == 0, hidden)
        padded = {"attention_mask": mask, "position_ids": position_ids}
        for way in ({"use_cache": False}, {"past_key_values": HippocampusCache(model.config, WINDOW)}):
            torch.testing.assert_close(model(tokens, **padded, **way).logits[0], expected[0], rtol=0, atol=TOLERANCE)


POSITIONS = torch.cat([torch.arange(n) for n in LENGTHS])[None]
BOUNDS = torch.tensor([0, *ENDS], dtype=torch.int32)
BOTH = {"cu_seq_lens_q": BOUNDS, "cu_seq_lens_k": BOUNDS}
PADDING = torch.ones(1, 48, dtype=torch.int64).index_fill(1, torch.arange(4), 0)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"position_ids": POSITIONS, "attention_mask": PADDING}, "attention_mask hides tokens .* position_ids put"),
        ({**BOTH, "attention_mask": PADDING}, "attention_mask hides tokens .* leave attention_mask out"),
        ({**BOTH, "position_ids": torch.arange(48)[None]}, "position_ids and cu_seq_lens_q contradict .* token 1 of"),
        ({**BOTH, "position_ids": POSITIONS.clone().index_fill(1, torch.tensor([47]), 0)}, "contradict .* token 47 of"),
        ({**BOTH, "cu_seq_lens_k": torch.tensor([0, 48])}, "cu_seq_lens_q and cu_seq_lens_k contradict"),
        ({"position_ids": POSITIONS, "seq_idx": torch.zeros(1, 48)}, "position_ids and seq_idx contradict"),
        ({"position_ids": 2 * torch.arange(48)[None]}, "position_ids go up by 2 at token 1 of row 0"),
        ({"position_ids": torch.arange(48)}, r"position_ids must be \[1, 48\] as the tokens, found \[48\]"),
        ({"position_ids": torch.arange(20)[None]}, r"position_ids must be \[1, 48\]"),
        ({"seq_idx": torch.zeros(2, 48)}, r"seq_idx must be \[1, 48\]"),
        ({"cu_seq_lens_q": torch.tensor([0, 20])}, r"cu_seq_lens_q must rise from 0 to the row's 48 tokens, found \[0"),
        ({"cu_seq_lens_k": torch.tensor([2, 48])}, "cu_seq_lens_k must rise from 0"),
        ({"cu_seq_lens_q": torch.tensor([0, 30, 20, 48])}, "cu_seq_lens_q must rise from 0"),
        ({"cu_seq_lens_q": BOUNDS[None]}, "cu_seq_lens_q must rise from 0"),
        ({**BOTH, "max_length_q": 19}, "max_length_q is 19, cu_seq_lens_q has a document of 20 tokens"),
        ({"cu_seqlens": BOUNDS}, "`cu_seqlens` is unknown: .* cu_seq_lens_q and cu_seq_lens_k"),
        ({**BOTH, "documents": [Document(0, 0, 48, WINDOW)]}, "`documents` and cu_seq_lens_q and cu_seq_lens_k say"),
        ({**BOTH, "use_cache": True}, "a cache holds one document a row: set use_cache=False"),
        ({"position_ids": POSITIONS, "use_cache": True}, "position_ids put several .* use_cache=False"),
        ({"position_ids": POSITIONS, "past_key_values": HippocampusCache(QWEN3, WINDOW)}, "give no past_key_values"),
    ],
)
def test_what_contradicts_itself_is_refused(model, row, message):
    with pytest.raises(ValueError, match=message):
        model(torch.ones(1, 48, dtype=torch.int64), **{"use_cache": False, **row})


def test_bounds_are_of_one_row_and_packed_prompts_are_not_generated_from(model):
    rows = torch.ones(2, 48, dtype=torch.int64)
    with pytest.raises(ValueError, match="cu_seq_lens_q gives the bounds of documents in one row, found a batch of 2"):
        model(rows, **BOTH)
    with pytest.raises(ValueError, match="a cache holds one document a row"):
        model.generate(rows, position_ids=POSITIONS.expand(2, -1), max_new_tokens=2)
    repeated = torch.tensor([0, 20, 20, 48, 48])  # as some collators fill their bounds up
    found = packed_documents(RowArguments(repeated), None, None, (1, 48), WINDOW, cached=False)
    assert found == [Document(0, 0, 20, WINDOW), Document(0, 20, 48, WINDOW)]


class _Operations(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.add(function._schema.name)
        return function(*args, **(kwargs or {}))


@torch.no_grad()
def test_training_and_decoding_do_not_wait_for_positions(model):
    """`nonzero` waits for a device; the control is a row that nobody describes."""
    row = {"input_ids": torch.ones(1, 48, dtype=torch.int64), "position_ids": POSITIONS}
    documents = [Document(0, end - length, end, WINDOW) for end, length in zip(ENDS, LENGTHS, strict=True)]
    for waits, described in ((False, {"documents": documents}), (True, {})):
        with _Operations() as operations:
            model(**row, **described, use_cache=False)
        assert ("aten::nonzero" in operations.names) == waits
    step = torch.empty(2, 1, device="meta", dtype=torch.int64)  # has nothing to look at
    assert packed_documents(RowArguments(), step, None, (2, 1), WINDOW, cached=True) is None
    with pytest.raises(NotImplementedError):
        packed_documents(RowArguments(), step.expand(2, 2), None, (2, 2), WINDOW, cached=True)
