"""How tables and pictures name and colour the variants of attention."""

from pipeline.config import Variant

LABELS: dict[Variant, str] = {
    "full": "full",
    "full_yarn": "full, YaRN",
    "window": "sinks + window",
    "compressive_max": "Compressive Transformer, max",
    "compressive_mean": "Compressive Transformer, mean",
    "memory_off": "AHN, writes disabled",
    "ahn": "sinks + window + AHN",
}
COLOURS: dict[Variant, str] = {
    "full": "#1d232b",
    "full_yarn": "#7a5195",
    "window": "#c2571a",
    "compressive_max": "#b8a038",
    "compressive_mean": "#5d8a3a",
    "memory_off": "#8a8f98",
    "ahn": "#1b6ca8",
}
FOREIGN = "AHN, another document's memory"


def label(row: str) -> str:
    """The name of a variant, or of the control `foreign`."""
    return FOREIGN if row == "foreign" else LABELS[row]
