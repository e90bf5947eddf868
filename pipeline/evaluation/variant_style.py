"""How tables and pictures name and colour the variants of attention."""

from pipeline.config import parse_variant

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
    whiteness = 0.1 * (number.bit_length() % 6)
    channels = (int(found[start : start + 2], 16) for start in (1, 3, 5))
    return "#" + "".join(f"{round(x + (255 - x) * whiteness):02x}" for x in channels)


def _style(variant: str) -> str:
    spec = parse_variant(variant)
    return "retained_ahn" if spec.kind == "retained" and spec.has_cell else spec.kind
