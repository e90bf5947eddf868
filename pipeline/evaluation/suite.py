"""What an evaluation is made of: suites, each a list of units to measure, a summary and a section of the report."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from pipeline.attention.window import WindowSpec
from pipeline.config import EvalConfig, Variant
from pipeline.data.loader import PackedDataset
from pipeline.evaluation.variant_windows import largest_budget
from pipeline.model.files import ModelFiles

if TYPE_CHECKING:  # torch and transformers take 4 s, and launchers/paper.py needs Table alone
    from transformers import PreTrainedTokenizerBase

    from pipeline.evaluation.reader import Reader

Record = dict[str, Any]
"""What was measured of one unit: JSON values. `evicted`: tokens that sinks + window have evicted by the end of what is
read before the answer, or a list of them, one for each prompt."""


LONGEST_DEFAULT = 131_072
"""Tokens of the paper's contexts: suites whose default lengths are multiples of the window go no further."""


def default_multiples(unit: int, counts: Sequence[int]) -> list[int]:
    """Those of `counts` with which `unit` tokens stay within LONGEST_DEFAULT; the least of them in any case."""
    return [count for count in counts if count * unit <= max(LONGEST_DEFAULT, min(counts) * unit)]


@dataclass(frozen=True)
class EvaluationInputs:
    """What suites are made from. `window`: sinks and window; `decision_interval`: of variants that retain tokens.
    `variants`: those asked for that the model has. `haystack`: tokens of a long text. `dataset`: None without --data.
    """

    config: EvalConfig
    files: ModelFiles
    window: WindowSpec
    variants: tuple[Variant, ...]
    tokenizer: "PreTrainedTokenizerBase"
    haystack: Sequence[int]
    dataset: PackedDataset | None
    decision_interval: int = 1

    @property
    def largest_budget(self) -> int:
        """The most tokens that one of the variants with a window keeps."""
        return largest_budget(self.variants, self.window, self.decision_interval)


@dataclass(frozen=True)
class Unit:
    """What is measured in one go and recorded as one line. `key` is unique in the suite.

    `variants`: those that it needs. `on_first_rank`: a timing, which rank 0 takes when all its other units are done.
    """

    key: str
    variants: tuple[Variant, ...]
    on_first_rank: bool = False


@dataclass(frozen=True)
class Table:
    """Cells are printed as they are; the first column holds names. `emphasised`: indices of rows in bold."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    emphasised: Sequence[int] = ()
    is_folded: bool = False


@dataclass(frozen=True)
class Picture:
    """A PNG, for one column of text. `is_square`: at most 500 px wide."""

    png: bytes
    alt: str
    caption: str = ""
    is_square: bool = False


@dataclass(frozen=True)
class Tile:
    """One figure in large print."""

    value: str
    caption: str


@dataclass(frozen=True)
class Section:
    """A part of the report, printed in the order of its fields. `texts`: of words with a CSS colour and a title."""

    title: str
    lead: str = ""
    tiles: Sequence[Tile] = ()
    tables: Sequence[Table] = ()
    pictures: Sequence[Picture] = ()
    texts: Sequence[Sequence[tuple[str, str, str]]] = ()
    note: str = ""


class Suite(Protocol):
    """A suite checks its flags and files when it is made, before any model is loaded."""

    name: str

    @property
    def settings(self) -> dict[str, Any]:
        """JSON values that determine what its records hold, besides model, window, dtype and variant."""

    def units(self) -> list[Unit]:
        """All units, the same for equal settings and variants, in an order that the summary keeps."""

    def measure(self, unit: Unit, readers: Mapping[Variant, "Reader"]) -> Record:
        """Measures one unit; `readers` has those variants that the unit names."""

    def summarise(self, records: Mapping[str, Record]) -> dict[str, Any]:
        """Its part of report.json, from the records of all its units by key, in order."""

    def sections(self, summary: dict[str, Any], records: Mapping[str, Record]) -> list[Section]:
        """Its part of the report."""
