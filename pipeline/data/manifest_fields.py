"""What the fields of a manifest.json may be. The folder may be a stranger's: whoever reads on relies on these types."""

import json
import math
from collections.abc import Callable, Mapping

MAX_DEPTH = 16  # Python's recursion ends at about a thousand


def parse_manifest(raw: bytes, format_version: int) -> dict:
    """The fields of the manifest in `raw`, each of the type that `shard_format.Manifest` says.

    What only data_prep's tools need of a source may be absent.

    Raises:
        ValueError: not JSON, of another format version, a field is missing or of another type.
    """
    try:
        fields = json.loads(raw.decode())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"it is not JSON ({error})") from error
    if not isinstance(fields, dict) or not _is_shallow(fields, MAX_DEPTH):
        raise ValueError("it is not a manifest")
    version = fields.get("format_version")
    if type(version) is not int or version != format_version:
        raise ValueError(f"it has format version {ascii(version)[:60]}, this code reads {format_version}")
    _check(fields, MANIFEST, "it")
    for entry in fields["shards"]:
        _check(entry, SHARD, "a shard's entry")
    for source in fields["sources"]:
        _check(source, SOURCE, "a source's entry")
        present = {name: fits for name, fits in SOURCE_DETAILS.items() if name in source}
        _check(source, present, f"source {source['name']}")
    for entry in fields["inputs"]:
        _check({"ignored_fields": {}} | entry, INPUT, "an input's entry")
    return fields


def _check(found: dict, expected: Mapping[str, Callable[[object], bool]], what: str) -> None:
    for name, fits in expected.items():
        if name not in found:
            raise ValueError(f"{what} lacks {name}")
        if not fits(found[name]):
            raise ValueError(f"{what} says {name} {ascii(found[name])[:60]}, which cannot be")


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < 1 << 63


def _is_length(value: object) -> bool:
    return _is_count(value) and value > 0


def _is_text(value: object) -> bool:
    """Whether it can be written as UTF-8: JSON also knows halves of surrogate pairs."""
    try:
        return isinstance(value, str) and value.encode() is not None
    except UnicodeEncodeError:
        return False


def _is_name(value: object) -> bool:
    return isinstance(value, str) and value.isprintable()  # nothing that a terminal would obey


def _is_weight(value: object) -> bool:
    return value is None or _is_count(value) or (type(value) is float and math.isfinite(value))


def _is_counts(value: object) -> bool:
    return isinstance(value, dict) and all(_is_name(name) and _is_count(count) for name, count in value.items())


def _is_dropped(value: object) -> bool:
    return isinstance(value, dict) and all(_is_name(kind) and _is_counts(counts) for kind, counts in value.items())


def _is_dict(value: object) -> bool:
    return isinstance(value, dict)


def _is_dicts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, dict) for item in value)


def _is_bool(value: object) -> bool:
    return isinstance(value, bool)


def _is_shallow(value: object, depth: int) -> bool:
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return depth > 0 and all(_is_shallow(child, depth - 1) for child in children)


MANIFEST = {
    "tokenizer_name": _is_text,
    "tokenizer_sha256": _is_name,
    "seq_len": _is_length,
    "packing": _is_dict,
    "sources": _is_dicts,
    "shards": _is_dicts,
    "inputs": _is_dicts,
    "dropped": _is_dropped,
    "totals": _is_counts,
}
SHARD = {
    **dict.fromkeys(("name", "source", "sha256", "index_sha256"), _is_name),
    **dict.fromkeys(("size", "index_size", "num_samples", "num_tokens"), _is_count),
}
SOURCE = {"name": _is_name, "weight": _is_weight}
SOURCE_DETAILS = {"reading": _is_dict, "labels": _is_bool, "totals": _is_counts, "dropped": _is_dropped}
INPUT = {
    "source": _is_name,
    "name": _is_text,
    "format": _is_name,
    "size": _is_count,
    "sha256": _is_name,
    "dropped": _is_counts,
    "ignored_fields": _is_counts,
}
