"""A press of NVIDIA's kvpress that reads held-out texts as they come, beside retained tokens: as a process of its own,
since kvpress is on its path alone.

    python kvpress_stream.py ADAPTER HELDOUT NUM_DOCUMENTS OUTPUT.json
"""

import json
import sys
from pathlib import Path

import torch
from kvpress import DecodingPress, SnapKVPress
from torch import Tensor
from transformers import AutoModelForCausalLM, DynamicCache, PreTrainedModel

from pipeline.attention.window import WindowSpec
from pipeline.data.loader import PackedDataset
from pipeline.evaluation.heldout.pieces import select_pieces
from pipeline.evaluation.heldout.suite import score_variants
from pipeline.evaluation.reader import Reader
from pipeline.model.adapter import read_adapter
from pipeline.model.loading import load_model

WINDOW, RETAINED, PART = WindowSpec(32, 96), 64, 16
BUDGET = WINDOW.lossless_budget + RETAINED
OBSERVED = 8
"""Newest queries by which SnapKV chooses; at most a part, as kvpress forgets hidden states when it has chosen."""


@torch.no_grad()
def press_kl(base: PreTrainedModel, tokens: Tensor, positions: Tensor) -> float:
    """KL to full attention in nats, summed over `positions`, of a text [N] of which never more than BUDGET tokens a
    head are kept: after each part of PART tokens kvpress drops as many."""
    full = base(tokens[None]).logits[0]
    press = DecodingPress(SnapKVPress(window_size=OBSERVED), compression_interval=1, target_size=BUDGET - PART)
    cache, logits, starts = DynamicCache(), [], [0, *range(BUDGET - PART, len(tokens), PART)]
    with press(base):
        for start, end in zip(starts, [*starts[1:], len(tokens)], strict=True):
            place = torch.arange(start, end)
            part = tokens[None, start:end]
            logits.append(base(part, past_key_values=cache, position_ids=place[None], cache_position=place).logits[0])
    assert max(layer.keys.shape[2] for layer in cache.layers) <= BUDGET
    teacher, student = (x[positions].log_softmax(-1) for x in (full, torch.cat(logits)))
    return (teacher.exp() * (teacher - student)).sum().item()


def main() -> None:
    adapter, held_out, count, output = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])
    torch.set_num_threads(1)
    base = AutoModelForCausalLM.from_pretrained(read_adapter(adapter)[0]["base_model"], dtype=torch.float32).eval()
    model = load_model(str(adapter), dtype=torch.float32).eval()
    variants = ("full", "window", f"retained{RETAINED}", f"retained{RETAINED}_ahn")
    readers = {name: Reader(model, name, WINDOW, 512, 1.0) for name in variants}
    dataset, rows = PackedDataset(held_out), []
    for piece in select_pieces(dataset, WINDOW.lossless_budget, count, 1):
        tokens = torch.from_numpy(dataset[piece.sample].input_ids[piece.start : piece.end].astype("int64"))
        positions = torch.from_numpy(piece.positions)
        found = {name: kl.sum().item() for name, kl in score_variants(readers, tokens, positions, 256)["kl"].items()}
        rows.append({"tokens": len(positions), **found, "kvpress": press_kl(base, tokens, positions)})
        print(rows[-1], flush=True)
    output.write_text(json.dumps(rows))


if __name__ == "__main__":
    main()
