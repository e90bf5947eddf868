"""settings.json of an evaluation's folder: what its records are of."""

import json
from collections.abc import Set
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.evaluation.claims import settling
from pipeline.evaluation.writing import write_atomically, writes_to


def settle(output: Path, common: dict[str, Any], suites: dict[str, dict[str, Any]], measured: Set[str]) -> None:
    """Adds this evaluation's settings to the folder's if they agree; they are on disk on return.

    Every rank does so, whichever comes first, so that none has a record before.

    Args:
        common: what determines all numbers; `suites`: what determines those of each, by suite.
        measured: suites that had records, looked up before this call: whoever wrote them wrote settings before.

    Raises:
        UserError: the folder's are others, damaged, or missing for a suite that has records; or they cannot be written.
    """
    path, wanted = output / "settings.json", json.loads(json.dumps({**common, "suites": suites}))
    with settling(output):
        found = _read(path)
        if found is None and measured:
            raise UserError(
                f"--output {output} holds records but no settings.json, so nothing tells what they are of; put it "
                f"back, or choose another folder"
            )
        known = {}
        if found is not None:
            known = found["suites"]
            _check(output, "", found, wanted)
        for suite in known.keys() & suites.keys():
            _check(output, f"{suite}: ", known[suite], wanted["suites"][suite])
        for suite in (measured & suites.keys()) - known.keys():
            raise UserError(
                f"--output {output} holds records of {suite} but no settings of it in settings.json, so nothing tells "
                f"what they are of; choose another folder"
            )
        merged = {**wanted, "suites": known | wanted["suites"]}
        if merged != found:
            with writes_to(output):
                write_atomically(path, json.dumps(merged, indent=1) + "\n")


def _read(path: Path) -> dict[str, Any] | None:
    """None where there are none."""
    try:
        found = json.loads(path.read_bytes())
        if {dict} != {type(found), type(found["suites"]), *map(type, found["suites"].values())}:
            raise ValueError("not the settings of an evaluation")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(
            f"--output {path.parent}: settings.json cannot be read ({error.strerror}), so nothing tells what its "
            f"records are of; put it back, or choose another folder"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"--output {path.parent}: settings.json is damaged ({error}), so nothing tells what its records are of; "
            f"put it back, or choose another folder"
        ) from error
    return found


def _check(output: Path, suite: str, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    for name in wanted.keys() - {"suites"}:
        if found.get(name) != wanted[name]:
            raise UserError(
                f"--output {output} holds an evaluation with {suite}{name} {found.get(name)}, this one has "
                f"{wanted[name]}; choose another folder"
            )
