"""Runs as one of P ranks that hold a row together, of whose documents tokens are retained: outputs, losses, gradients.

RANK=.. WORLD_SIZE=.. MASTER_ADDR=.. MASTER_PORT=.. python retained_cases.py CASES.json OUTPUT_FOLDER
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from pipeline.attention.window import Document, WindowSpec
from pipeline.data.collate import DrawnSample, collate
from pipeline.data.shard_format import PackedSample
from pipeline.distributed.groups import init_distributed, leave_distributed
from pipeline.distributed.head_shares import share_heads
from pipeline.distributed.ulysses import SequenceGroup
from pipeline.model import retained_documents
from pipeline.model.prefix import PrefixStore
from pipeline.model.sequence_shard import SequenceLayout, SequenceShard
from pipeline.training.distillation import Distillation
from tests.distributed.sequence_cases import VOCABULARY, build_model

HEADS = {2: [(3, 1), (4, 2)], 4: [(6, 2), (4, 4)]}  # of the first, two ranks share a key-value head, unevenly
ROWS = {  # documents' lengths and windows
    **{f"M {m} C {c}": [(45, WindowSpec(3, 9, m, c))] for m in (1, 3, 8) for c in (1, 4)},
    "packed": [
        (24, WindowSpec(1, 4, 3)), (7, WindowSpec(2, 6, 8)), (3, WindowSpec(0, 2, 1)), (23, WindowSpec(0, 5, 2, 3)),
        (9, WindowSpec(1, 3)),
    ],
    "wide": [(8, WindowSpec(0, 2)), (90, WindowSpec(4, 66, 3, 2))],  # every second query is sampled
}  # fmt: skip
Result = dict[str, Tensor]


def documents_of(row: str) -> list[Document]:
    documents, start = [], 0
    for length, window in ROWS[row]:
        documents.append(Document(0, start, start + length, window))
        start += length
    return documents


def tokens_of(row: str) -> Tensor:
    length = documents_of(row)[-1].end
    return torch.randint(VOCABULARY, (1, length), generator=torch.Generator().manual_seed(length))


def build(case: dict) -> torch.nn.Module:
    """`case`: {"cell", "heads", "row", "scorer": zero | acting}; with a scorer of zeros all scores are equal.

    Attention is far from uniform, so that the query heads of a group give a token different masses.
    """
    model = build_model(case["cell"], tuple(case["heads"]), has_scorer=True)
    with torch.no_grad():
        for number, (name, buffer) in enumerate(scorers(model).items()):
            if case["scorer"] == "acting":
                buffer.copy_(torch.randn(buffer.shape, generator=torch.Generator().manual_seed(number)))
                buffer *= 0.05 if name.endswith("position_weight") else 0.5  # positions are tens
        for name, parameter in model.named_parameters():
            if name.endswith(("q_proj.weight", "k_proj.weight")):
                parameter *= 6
    return model


def scorers(model: torch.nn.Module) -> dict[str, Tensor]:
    return {name: buffer for name, buffer in model.named_buffers() if ".ahn.retention." in name}


def evicting(row: str) -> tuple[list[Document], Tensor]:
    """The documents that evict something, and where the row's tokens are that read a memory."""
    documents = [d for d in documents_of(row) if d.num_evicted]
    return documents, PrefixStore(documents).suffix_indices()


def weights_of(row: str, width: int) -> Tensor:
    """Of each output in the loss [N, width]: 0 but for tokens that read a memory."""
    weights, places = torch.zeros(len(tokens_of(row)[0]), width, dtype=torch.float64), evicting(row)[1]
    weights[places] = torch.randn(len(places), width, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return weights


def gradients(loss: Tensor, model: torch.nn.Module) -> Result:
    loss.backward()
    return {n: p.grad for n, p in model.named_parameters() if ".ahn.fn." in n}


def run_alone(case: dict) -> Result:
    """Outputs, loss and gradients of one process that computes the whole row."""
    model, tokens = build(case), tokens_of(case["row"])
    output = model.get_decoder()(tokens, use_cache=False, documents=documents_of(case["row"])).last_hidden_state[0]
    loss = (output * weights_of(case["row"], output.shape[1])).sum()
    return {"loss": loss.detach(), "output": output.detach(), **gradients(loss, model)}


def uneven_shard(num_tokens: int, case: dict, group: SequenceGroup) -> SequenceShard:
    """The first rank has a sixth, the others what is left, the last most of it."""
    counts = [num_tokens // 6] * (group.size - 1)
    heads = share_heads(*case["heads"], group.size)
    return SequenceShard(group, heads, (*counts, num_tokens - sum(counts)))


def run_shared(case: dict, group: SequenceGroup, *, behind_prefixes: bool) -> Result:
    """`run_alone` by the group's ranks; `behind_prefixes`: of the tokens that read a memory alone. Sums over ranks."""
    model, tokens, weights = build(case), tokens_of(case["row"]), weights_of(case["row"], case["heads"][0] * 8)
    documents, options = documents_of(case["row"]), {}
    shard = uneven_shard(tokens.shape[1], case, group)
    if behind_prefixes:
        evict, places = evicting(case["row"])
        prefixes = PrefixStore(evict, shard=shard)
        teacher = [Document(0, d.start, d.end, None) for d in documents]
        with torch.no_grad():
            options = {"documents": teacher, "use_memory": False, "record": prefixes, "shard": shard}
            model.get_decoder()(shard.take(tokens), use_cache=False, **options)
        documents, options = prefixes.suffix_documents(), {"prefixes": prefixes}
        tokens, weights = tokens[:, places], weights[places]
        shard = uneven_shard(len(places), case, group)
    output = model.get_decoder()(shard.take(tokens), use_cache=False, documents=documents, shard=shard, **options)
    output = output.last_hidden_state[0]
    loss = (output * weights[shard.own]).sum()
    whole = output.new_zeros(weights.shape)
    whole[shard.own] = output.detach()
    result = {**gradients(loss, model), "loss": loss.detach(), "output": whole}
    for value in result.values():
        dist.all_reduce(value)
    return result


def distil(case: dict, layout: SequenceLayout | None) -> Result:
    """Loss and gradients as in training, the loss of this rank's positions. `case`: and "source": kl | ce,
    "checkpointing"."""
    documents, model = documents_of(case["row"]), build(case)
    bounds, tokens = [0, *(d.end for d in documents)], tokens_of(case["row"])[0].numpy().astype(np.uint32)
    sample = PackedSample("s", tokens, np.array(bounds, np.int32), np.ones(len(tokens), np.uint8), {})
    batch = collate([DrawnSample(0, sample, documents[-1].window)])
    weights = torch.rand(len(batch.positions), generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    if case["checkpointing"]:
        model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    loss = Distillation(model, case["source"], 7, layout=layout)(batch, weights)
    return {"loss": loss.detach(), **gradients(loss, model)}


def run_distillation(case: dict, group: SequenceGroup) -> Result:
    result = distil(case, SequenceLayout(group, share_heads(*case["heads"], group.size)))
    for value in result.values():
        dist.all_reduce(value)
    return result


def orders_of_scorers_that_differ(case: dict, group: SequenceGroup) -> list[Tensor]:
    """The orders of drops by layer and document, where each rank's own scorer would give others: a stand-in for
    arithmetic that rounds differently."""
    model, tokens, orders, drop_order = build(case), tokens_of(case["row"]), [], retained_documents.drop_order
    with torch.no_grad():
        for buffer in scorers(model).values():
            buffer += torch.randn(buffer.shape, generator=torch.Generator().manual_seed(group.rank))

    def remembered(*arguments: object) -> Tensor:
        orders.append(drop_order(*arguments))
        return orders[-1]

    retained_documents.drop_order = remembered
    shard = uneven_shard(tokens.shape[1], case, group)
    model.get_decoder()(shard.take(tokens), use_cache=False, documents=documents_of(case["row"]), shard=shard)
    retained_documents.drop_order = drop_order
    return orders


def sent_without_retained(case: dict, group: SequenceGroup, *, has_scorer: bool) -> tuple[int, Tensor]:
    """Bytes sent, and outputs of this rank's tokens, where nothing is retained."""
    model, tokens = build_model(case["cell"], tuple(case["heads"]), has_scorer=has_scorer), tokens_of(case["row"])
    documents = [Document(0, d.start, d.end, d.window.without_retained) for d in documents_of(case["row"])]
    with torch.no_grad():
        for name, parameter in model.named_parameters():  # the same, whether there are scorers or not
            parameter.copy_(torch.sin(torch.arange(parameter.numel()) + len(name)).view(parameter.shape))
    shard, before = uneven_shard(tokens.shape[1], case, group), group.bytes_sent
    output = model.get_decoder()(shard.take(tokens), use_cache=False, documents=documents, shard=shard)
    return group.bytes_sent - before, output.last_hidden_state.detach()


def main() -> None:
    ranks, cases, results = init_distributed(), json.loads(Path(sys.argv[1]).read_text()), {}
    group = SequenceGroup(ranks.rank, ranks.world_size, None)
    for name, case in cases.items():
        if "source" in case:
            results[name] = run_distillation(case, group)
            continue
        for behind in (False, True):
            results[name, behind] = run_shared(case, group, behind_prefixes=behind)
    case = {"cell": "delta_net", "heads": HEADS[group.size][0], "row": "packed", "scorer": "acting"}
    results["orders"] = orders_of_scorers_that_differ(case, group)
    results["sent"] = [sent_without_retained(case, group, has_scorer=has_scorer) for has_scorer in (False, True)]
    torch.save(results, Path(sys.argv[2]) / f"rank{group.rank}.pt")
    leave_distributed()


if __name__ == "__main__":
    main()
