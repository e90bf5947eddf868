"""How tables and pictures name and colour the variants of attention."""

from collections.abc import Collection

from pipeline.config import Variant, parse_variant

LABELS = {
    "full": "full",
    "full_yarn": "full, YaRN",
    "window": "sinks + window",
    "compressive_max": "Compressive Transformer, max",
    "compressive_mean": "Compressive Transformer, mean",
    "memory_off": "AHN, writes disabled",
    "ahn": "sinks + window + AHN",
    "wider": "window wider by {tokens}",
    "retained": "window + {tokens} chosen",
    "retained_ahn": "window + {tokens} chosen + AHN",
    "random": "window + {tokens} at random",
    "received": "window + {tokens} by received mass (H2O)",
    "oracle": "window + {tokens} that the future reads (upper bound)",
}
COLOURS = {
    "full": "#1d232b",
    "full_yarn": "#7a5195",
    "window": "#c2571a",
    "compressive_max": "#b8a038",
    "compressive_mean": "#5d8a3a",
    "memory_off": "#8a8f98",
    "ahn": "#1b6ca8",
    "wider": "#d98f4e",
    "retained": "#178a6b",
    "retained_ahn": "#0f5c8c",
    "random": "#a9a28f",
    "received": "#9a3f86",
    "oracle": "#5b5f97",
}
FOREIGN = "another document's memory"
FOREIGN_PREFIX = "foreign"


def has_control(variant: str, variants: Collection[str]) -> bool:
    """Whether it is also measured with another document's memory in place of its own, if these are measured: where it
    has one, but for retained tokens alone beside the same ones with a cell."""
    return parse_variant(variant).kind in ("ahn", "retained") and f"{variant}_ahn" not in variants


def foreign_row(variant: str) -> str:
    """The name of a variant's control: `foreign` of `ahn`, `foreign_retained64` of `retained64`."""
    return FOREIGN_PREFIX if variant == "ahn" else f"{FOREIGN_PREFIX}_{variant}"


def own_variant(row: str) -> str:
    """The variant that a row is of, whether it is that variant's or its control's."""
    if row == FOREIGN_PREFIX:
        return "ahn"
    return row.removeprefix(f"{FOREIGN_PREFIX}_")


def is_foreign(row: str) -> bool:
    """Whether a row is a control."""
    return own_variant(row) != row


def label(row: str) -> str:
    """The name of a variant, or of its control."""
    variant = own_variant(row)
    name = LABELS[_style(variant)].format(tokens=f"{parse_variant(variant).num_tokens:,}")
    if not is_foreign(row):
        return name
    return f"{'AHN' if variant == 'ahn' else name}, {FOREIGN}"


def colour_of(row: str) -> str:
    """A variant's, which its control shares. The same kind with other numbers of tokens is lighter or darker."""
    variant = own_variant(row)
    number, found = parse_variant(variant).num_tokens, COLOURS[_style(variant)]
    whiteness = 0.14 * (number.bit_length() % 5)
    channels = (int(found[start : start + 2], 16) for start in (1, 3, 5))
    return "#" + "".join(f"{round(x + (255 - x) * whiteness):02x}" for x in channels)


def main_variant(rows: Collection[str]) -> Variant | None:
    """Of the variants measured, the one that the report is about: tokens chosen by the model with its cell, without it,
    or its cell alone; the first of several."""
    found = [parse_variant(row) for row in rows if not is_foreign(row)]
    ranked = [spec for spec in found if spec.kind in ("retained", "ahn")]
    ranked.sort(key=lambda spec: (spec.kind == "ahn", not spec.has_cell))
    return ranked[0].name if ranked else None


def describe(main: Variant) -> str:
    """What is added to the window, in words that take a singular verb."""
    spec = parse_variant(main)
    if spec.kind == "ahn":
        return "the AHN"
    return f"the choice of {spec.num_tokens:,} tokens" + (" with the AHN" if spec.has_cell else "")


def _style(variant: str) -> str:
    spec = parse_variant(variant)
    return "retained_ahn" if spec.kind == "retained" and spec.has_cell else spec.kind
