"""Suite `heldout`: KL to full attention and perplexity of every variant on held-out documents, past the window."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pipeline.config import Variant
from pipeline.errors import UserError
from pipeline.evaluation.heldout.pieces import select_pieces
from pipeline.evaluation.heldout.sections import make_sections
from pipeline.evaluation.heldout.summary import summarise
from pipeline.evaluation.reader import Reader
from pipeline.evaluation.suite import EvaluationInputs, Record, Section, Unit
from pipeline.losses.chunked_kl import score_positions

SIGNIFICANT_DIGITS = 7


class HeldoutSuite:
    """One unit a piece of text: all variants beside full attention, whose distributions the KL needs.

    A record has `document`, `length`, `positions` [M] (0-based in the piece; the value at t is about predicting token
    t + 1), and by variant `kl` (to full attention) and `nll`, [M] each, in nats.

    Raises:
        UserError: no --data, or nothing to compare full attention with.
        DataError: nothing in it is long enough.
    """

    name = "heldout"

    def __init__(self, inputs: EvaluationInputs) -> None:
        if inputs.dataset is None:
            raise UserError("--data: `heldout` reads packed documents; give them, or leave it out of --suites")
        if not set(inputs.variants) - {"full"}:
            raise UserError("--variants: `heldout` compares others with full attention; name one more")
        config = inputs.config
        self._dataset, self._window, self._chunk_size = inputs.dataset, inputs.window, config.logits_chunk_size
        budget = inputs.window.lossless_budget
        self._pieces = {
            piece.key: piece
            for piece in select_pieces(inputs.dataset, budget, config.max_documents, config.pieces_per_document)
        }
        self._variants = tuple(dict.fromkeys(("full", *inputs.variants)))

    @property
    def settings(self) -> dict[str, Any]:
        return {"data": self._dataset.fingerprint}

    def units(self) -> list[Unit]:
        variants = "+".join(self._variants)
        return [Unit(f"{key}/{variants}", self._variants) for key in self._pieces]

    def measure(self, unit: Unit, readers: Mapping[Variant, Reader]) -> Record:
        piece = self._pieces[unit.key.split("/")[0]]
        tokens = self._dataset[piece.sample].input_ids[piece.start : piece.end].astype("int64")
        scores = score_variants(readers, torch.from_numpy(tokens), torch.from_numpy(piece.positions), self._chunk_size)
        return {
            "document": piece.document,
            "length": len(tokens),
            "positions": piece.positions.tolist(),
            **{
                name: {variant: [_rounded(x) for x in values.tolist()] for variant, values in by_variant.items()}
                for name, by_variant in scores.items()
            },
        }

    def summarise(self, records: Mapping[str, Record]) -> dict[str, Any]:
        return summarise(list(records.values()), self._window)

    def sections(self, summary: dict[str, Any], records: Mapping[str, Record]) -> list[Section]:
        return make_sections(summary, list(records.values()), self._window)


@torch.no_grad()
def score_variants(
    readers: Mapping[Variant, Reader], tokens: Tensor, positions: Tensor, chunk_size: int
) -> dict[str, dict[Variant, Tensor]]:
    """`kl` to full attention, of all but it, and `nll`, float32 [M] by variant, in nats.

    Args:
        readers: `full` among them.
        tokens: int64 [N], read from its beginning.
        positions: int64 [M] in [0, N - 1), rising; the hidden state at t predicts token t + 1.
        chunk_size: positions whose logits exist at one time.
    """
    model = readers["full"].model
    head, targets = model.get_output_embeddings().weight, tokens[positions + 1].to(model.device)
    full = readers["full"].hidden_states(tokens, positions)
    kl, nll = {}, {}
    for variant, reader in readers.items():
        if variant != "full":
            found = score_positions(reader.hidden_states(tokens, positions), full, targets, head, chunk_size)
            kl[variant], nll["full"], nll[variant] = found.kl, found.teacher_nll, found.student_nll
    return {name: {v: x.float().cpu() for v, x in values.items()} for name, values in (("kl", kl), ("nll", nll))}


def _rounded(x: float) -> float:
    return float(f"{x:.{SIGNIFICANT_DIGITS}g}")
