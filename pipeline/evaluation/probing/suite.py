"""Suite `probing`: what the memories keep of evicted tokens, how loud they are, and which layers' matter."""

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import torch
from transformers import PreTrainedModel

from pipeline.config import Variant, parse_variant
from pipeline.data.loader import PackedDataset
from pipeline.errors import UserError
from pipeline.evaluation.heldout.pieces import Piece, select_pieces
from pipeline.evaluation.probing.contributions import kl_without, memory_shares
from pipeline.evaluation.probing.gradients import token_gradients
from pipeline.evaluation.probing.retained import find_retained, make_retained_section, summarise_retained
from pipeline.evaluation.probing.sections import make_sections
from pipeline.evaluation.probing.summary import bin_shares, summarise
from pipeline.evaluation.reader import Reader
from pipeline.evaluation.suite import EvaluationInputs, Record, Section, Unit
from pipeline.evaluation.variant_style import main_variant
from pipeline.model.augment import memory_layers

DEFAULT_WINDOWS, DEFAULT_ZEROING_WINDOWS = 4, 3
NUM_PARTS = 4
SIGNIFICANT_DIGITS = 6


class ProbingSuite:
    """For each piece of text a unit `tokens`, and NUM_PARTS that zero each layer's memory in turn; `ahn` alone. Where a
    variant that retains tokens by the model's scorer is measured beside it, one more, `retained`, of the first piece.

    Records, beside `document` and `evicted`: of `tokens` the text's `ids`, `first`, `norms`, `without_memory`, `loss`
    and `num_queries` as in `TokenGradients`, and `shares` with their `counts`, binned by distance past W; of the others
    `num_positions` and `kl`, sums in nats by what was zeroed: "none", "all", or a layer's number; of `retained` see
    retained.py.

    Raises:
        UserError: no --data, or a length that evicts nothing.
        DataError: nothing in it is long enough.
    """

    name = "probing"

    def __init__(self, inputs: EvaluationInputs) -> None:
        if inputs.dataset is None:
            raise UserError("--data: `probing` reads packed documents; give them, or leave it out of --suites")
        config, budget = inputs.config, inputs.window.lossless_budget
        self._length = config.probing.length or DEFAULT_WINDOWS * budget
        self._zeroing_length = min(self._length, config.probing.zeroing_length or DEFAULT_ZEROING_WINDOWS * budget)
        for flag, length in (("length", self._length), ("zeroing_length", self._zeroing_length)):
            if length < budget + 2:
                raise UserError(
                    f"--probing.{flag} {length}: with W = {budget} the first token is evicted, and a prediction after "
                    f"it made, with {budget + 2} tokens; give at least those"
                )
        self._dataset, self._window, self._tokenizer = inputs.dataset, inputs.window, inputs.tokenizer
        self._chunk_size = config.logits_chunk_size
        self._has_memory = "ahn" in inputs.variants
        main = main_variant(inputs.variants)
        self._retaining = main if self._has_memory and parse_variant(main).is_retaining else None
        pieces = _supervised_early(inputs.dataset, budget, self._zeroing_length)[: config.probing.documents]
        self._pieces = {piece.key: piece for piece in pieces}

    @property
    def settings(self) -> dict[str, Any]:
        return {
            "data": self._dataset.fingerprint,
            "length": self._length,
            "zeroing_length": self._zeroing_length,
            "gradients": "with and without memories",
        }

    def units(self) -> list[Unit]:
        parts = ["tokens", *(f"zeroed{part}" for part in range(NUM_PARTS))]
        units = [Unit(f"{key}/{part}", ("ahn",)) for key in self._pieces for part in parts] if self._has_memory else []
        if self._retaining is not None:
            units.append(Unit(f"{next(iter(self._pieces))}/{self._retaining}", (self._retaining,)))
        return units

    def measure(self, unit: Unit, readers: Mapping[Variant, Reader]) -> Record:
        key, part = unit.key.split("/")
        reader, piece = readers[unit.variants[0]], self._pieces[key]
        model, is_zeroing = reader.model, part.startswith("zeroed")
        piece = _shortened(piece, self._zeroing_length if is_zeroing else self._length)
        read = {"document": piece.document, "evicted": self._window.num_evicted(piece.end - piece.start)}
        if part == self._retaining:
            return {**read, **find_retained(reader, self._read(piece, model.device)[0])}
        if part == "tokens":
            return {**read, **self._probe_tokens(model, piece)}
        layers = list(memory_layers(model))
        without = {"none": (), "all": layers, **{str(layer): (layer,) for layer in layers}}
        names = list(without)[int(part.removeprefix("zeroed")) :: NUM_PARTS]
        ids, positions = self._read(piece, model.device)
        layer_sets = [without[name] for name in names]
        sums = kl_without(model, ids, positions, self._window, layer_sets, self._chunk_size)
        kl = dict(zip(names, sums, strict=True))
        return {**read, "num_positions": len(positions), "kl": kl}

    def summarise(self, records: Mapping[str, Record]) -> dict[str, Any]:
        if not records:
            return {}
        found = summarise(list(records.values()), self._tokenizer)
        retained = _of_retained(records)
        return found if retained is None else found | {"retained": summarise_retained(retained, self._tokenizer)}

    def sections(self, summary: dict[str, Any], records: Mapping[str, Record]) -> list[Section]:
        if not records:
            return []
        sections = make_sections(summary, list(records.values()), self._length, self._tokenizer, self._window)
        retained = _of_retained(records)
        if retained is not None:
            sections.append(make_retained_section(summary["retained"], retained, self._tokenizer))
        return sections

    def _probe_tokens(self, model: PreTrainedModel, piece: Piece) -> Record:
        ids, positions = self._read(piece, model.device)
        found = token_gradients(model, ids, positions, self._window, self._chunk_size)
        shares, counts = bin_shares(memory_shares(model, ids, self._window), self._length, self._window)
        return {
            "ids": ids.tolist(),
            **asdict(found),
            "norms": [_rounded(x) for x in found.norms.tolist()],
            "without_memory": [_rounded(x) for x in found.without_memory.tolist()],
            "shares": [[None if x is None else _rounded(x) for x in row] for row in shares],
            "counts": counts,
        }

    def _read(self, piece: Piece, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        ids = self._dataset[piece.sample].input_ids[piece.start : piece.end].astype("int64")
        return torch.from_numpy(ids).to(device), torch.from_numpy(piece.positions).to(device)


def _of_retained(records: Mapping[str, Record]) -> Record | None:
    return next((record for record in records.values() if "heads" in record), None)


def _supervised_early(dataset: PackedDataset, budget: int, length: int) -> list[Piece]:
    """The longest piece of each document, with a supervised position among its first `length` tokens.

    Raises:
        DataError: nothing in the folder is long enough.
        UserError: no piece has one.
    """
    pieces = select_pieces(dataset, budget, None, 1)
    found = [piece for piece in pieces if piece.positions[0] <= length - 2]
    if not found:
        needed = min(int(piece.positions[0]) for piece in pieces) + 2
        raise UserError(
            f"--probing.zeroing_length: no document of --data {dataset.folder} has a token to predict between W = "
            f"{budget} and {length}; give at least {needed}, and no less as --probing.length"
        )
    return found


def _shortened(piece: Piece, length: int) -> Piece:
    """At most its first `length` tokens, up to the last that is to be predicted."""
    positions = piece.positions[piece.positions <= length - 2]
    return replace(piece, end=piece.start + int(positions[-1]) + 2, positions=positions)


def _rounded(x: float) -> float:
    return float(f"{x:.{SIGNIFICANT_DIGITS}g}")
