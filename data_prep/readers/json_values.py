"""JSON of any origin: integers of any length, and no key twice."""

import json
import sys
from decimal import Decimal
from typing import Any


class RepeatedKey(Exception):
    """An object has a key twice, of which Python would take the last."""


def parse_json(text: str) -> Any:
    """The value. An integer of more digits than Python may be told to take is a Decimal: exact, and quick to read.

    Raises:
        ValueError: it is no JSON.
        RecursionError: it is nested too deeply.
        RepeatedKey: as it says.
    """
    return _DECODER.decode(text)


def _integer(digits: str) -> int | Decimal:
    return int(digits) if len(digits) <= sys.int_info.str_digits_check_threshold else Decimal(digits)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise RepeatedKey
    return values


_DECODER = json.JSONDecoder(parse_int=_integer, object_pairs_hook=_object)
