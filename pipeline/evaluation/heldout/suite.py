"""Suite `heldout`: KL to full attention and perplexity of every variant on held-out documents, past the window."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from pipeline.config import Variant
from pipeline.errors import UserError
from pipeline.evaluation.absorbed.summary import Row
from pipeline.evaluation.heldout.foreign import choose_partner, read_with_foreign_memory
from pipeline.evaluation.heldout.pieces import Piece, select_pieces
from pipeline.evaluation.heldout.sections import make_sections
from pipeline.evaluation.heldout.summary import summarise
from pipeline.evaluation.reader import Reader
from pipeline.evaluation.suite import EvaluationInputs, Record, Section, Unit
from pipeline.evaluation.variant_bytes import count_bytes
from pipeline.evaluation.variant_style import foreign_row, has_control
from pipeline.losses.chunked_kl import score_positions
from pipeline.losses.output_head import OutputHead
from pipeline.model.output_head import find_output_head

SIGNIFICANT_DIGITS = 7


class HeldoutSuite:
    """One unit a piece of text: all variants beside full attention, whose distributions the KL needs.

    A record has `document`, `length`, `evicted`, `positions` [M] (0-based in the piece; the value at t is about
    predicting token t + 1), and by variant `kl` (to full attention) and `nll`, [M] each, in nats. With variants that
    have a control, where the folder has another document, both have those rows too (`foreign` of `ahn`,
    `foreign_retained64`): the variant with the memory of `partner`, for the first positions, as far as that text
    reaches. The first piece's has `bytes` (variant_bytes.py), and `rounding_kl`, where the model's dtype is narrower
    than float32.

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
        self._largest_budget = inputs.largest_budget
        budget = inputs.window.lossless_budget
        self._pieces = {
            piece.key: piece
            for piece in select_pieces(inputs.dataset, budget, config.max_documents, config.pieces_per_document)
        }
        self._lenders = select_pieces(inputs.dataset, budget, None, 1)  # the same whatever is scored of the folder
        self._variants = tuple(dict.fromkeys(("full", *inputs.variants)))

    @property
    def settings(self) -> dict[str, Any]:
        return {"data": self._dataset.fingerprint, "control": "another document's memory", "logits": "float32"}

    def units(self) -> list[Unit]:
        variants = "+".join(sorted(self._variants))  # in another order they are the same work
        return [Unit(f"{key}/{variants}", self._variants) for key in self._pieces]

    def measure(self, unit: Unit, readers: Mapping[Variant, Reader]) -> Record:
        key = unit.key.split("/")[0]
        piece = self._pieces[key]
        tokens, positions, partner = self._read(piece), torch.from_numpy(piece.positions), self._partner(piece)
        other = None if partner is None else self._read(partner)
        scores = score_variants(readers, tokens, positions, self._chunk_size, other)
        record: Record = {
            "document": piece.document,
            "length": len(tokens),
            "evicted": self._window.num_evicted(len(tokens)),
            "positions": piece.positions.tolist(),
            **{
                name: {row: [_rounded(x) for x in values.tolist()] for row, values in by_row.items()}
                for name, by_row in scores.items()
            },
        }
        if partner is not None:
            record["partner"] = partner.document
        full = readers["full"]
        if key == next(iter(self._pieces)):
            record["bytes"] = {variant: asdict(count_bytes(reader)) for variant, reader in readers.items()}
            if full.model.dtype.itemsize < torch.float32.itemsize:
                record["rounding_kl"] = _rounded(rounding_kl(full, tokens, positions, self._chunk_size))
        return record

    def _read(self, piece: Piece) -> Tensor:
        return torch.from_numpy(self._dataset[piece.sample].input_ids[piece.start : piece.end].astype("int64"))

    def _partner(self, piece: Piece) -> Piece | None:
        if not any(has_control(variant, self._variants) for variant in self._variants):
            return None
        return choose_partner(piece, self._lenders, self._window.window_size)

    def summarise(self, records: Mapping[str, Record]) -> dict[str, Any]:
        return summarise(list(records.values()), self._window, self._largest_budget)

    def sections(self, summary: dict[str, Any], records: Mapping[str, Record]) -> list[Section]:
        return make_sections(summary, list(records.values()), self._window)


@torch.no_grad()
def score_variants(
    readers: Mapping[Variant, Reader], tokens: Tensor, positions: Tensor, chunk_size: int, other: Tensor | None = None
) -> dict[str, dict[Row, Tensor]]:
    """`kl` to full attention, of all but it, and `nll`, float32 [M] by row, in nats.

    Args:
        readers: `full` among them, and one more.
        tokens: int64 [N], read from its beginning.
        positions: int64 [M] in [0, N - 1), rising; the hidden state at t predicts token t + 1.
        chunk_size: positions whose logits exist at one time.
        other: int64 [N'], the text whose memory the rows of controls [M' <= M] have; None leaves those out.
    """
    full, head = readers["full"].hidden_states(tokens, positions), _float32_head(readers["full"])
    targets = tokens[positions + 1].to(full.device)
    kl, nll = {}, {}

    def score(row: Row, hidden: Tensor) -> None:
        reach = len(hidden)
        found = score_positions(hidden, full[:reach], targets[:reach], head, chunk_size)
        nll.setdefault("full", found.teacher_nll.float().cpu())
        kl[row], nll[row] = found.kl.float().cpu(), found.student_nll.float().cpu()

    for variant, reader in readers.items():
        if variant != "full":
            score(variant, reader.hidden_states(tokens, positions))
        if other is not None and has_control(variant, readers):
            score(foreign_row(variant), read_with_foreign_memory(reader, tokens, other, positions))
    return {"kl": kl, "nll": nll}


@torch.no_grad()
def rounding_kl(full: Reader, tokens: Tensor, positions: Tensor, chunk_size: int) -> float:
    """Mean KL in nats from full attention to itself, read in other parts: what the model's dtype rounds off.

    Args:
        full: reads with full attention.
        tokens: int64 [N].
        positions: int64 [M] in [0, N - 1).
        chunk_size: positions whose logits exist at one time.
    """
    part = min(full.prefill_chunk, len(tokens)) // 4 | 1  # odd, or kernels' blocks are the same and so is every bit
    again = Reader(full.model, "full", full.window, part, full.yarn_factor)
    one, other = (reader.hidden_states(tokens, positions) for reader in (full, again))
    targets = tokens[positions + 1].to(one.device)
    return score_positions(other, one, targets, _float32_head(full), chunk_size).kl.mean().item()


def _float32_head(reader: Reader) -> OutputHead:
    """Logits of a narrower dtype are coarser than the differences that are measured."""
    head = find_output_head(reader.model)
    dtype = torch.promote_types(head.weight.dtype, torch.float32)
    return head if head.weight.dtype == dtype else head.copy_to(dtype)


def _rounded(x: float) -> float:
    return float(f"{x:.{SIGNIFICANT_DIGITS}g}")
