"""The tokenizer that made a packed folder, wherever it lies by now: its fingerprint tells it from others."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from huggingface_hub import hf_hub_download, try_to_load_from_cache
from tokenizers import Tokenizer

from data_prep.run_info import check_run_info
from pipeline.data.shard_format import DataError, Manifest, tokenizer_fingerprint
from pipeline.tokenizer import fingerprint, load_tokenizer

TOKENIZER_FILE = "tokenizer.json"
Decode = Callable[[list[int]], str]


def load_decoder(manifest: Manifest, given: str) -> Decode:
    """`decode` of the tokenizer that made the data.

    Args:
        manifest: of the data.
        given: folder with tokenizer.json, that file, or a hub id.

    Raises:
        DataError: no tokenizer there, or another one than the data's.
    """
    path = Path(given) / TOKENIZER_FILE if Path(given).is_dir() else Path(given)
    if not path.exists() and Path(given).is_dir():
        raise DataError(f"--tokenizer {given}: the folder has no {TOKENIZER_FILE}")
    if not path.exists():
        path = _from_hub(given)
    found, decode = _read(path, f"--tokenizer {given}", manifest.tokenizer_sha256)
    if decode is None:
        raise DataError(
            f"--tokenizer {given} has fingerprint {found}, the data was made with {manifest.tokenizer_name}, "
            f"{manifest.tokenizer_sha256}; name that one's folder"
        )
    return decode


def find_decoder(folder: Path, manifest: Manifest) -> Decode:
    """`decode` of the tokenizer that made the data: from where it lay when the data was made, the folder that the
    manifest names, or what was once fetched from the hub. Nothing is fetched.

    Raises:
        DataError: it is in none of these places; says why.
    """
    reasons = []
    for place, path in _places(folder, manifest):
        try:
            _, decode = _read(path, place, manifest.tokenizer_sha256)
            if decode is not None:
                return decode
            reasons.append(f"{place} is another one by now")
        except DataError as error:
            reasons.append(str(error))
    raise DataError("; ".join(reasons))


def _places(folder: Path, manifest: Manifest) -> Iterator[tuple[str, Path | None]]:
    """What to call each place, and the file there; None where it cannot be."""
    name = manifest.tokenizer_name
    try:
        recorded = check_run_info(folder).get("tokenizer")
    except DataError:
        recorded = None  # it may be lost: the data is whole without it
    if isinstance(recorded, str):
        yield recorded, Path(recorded) / TOKENIZER_FILE
    if name and Path(name) != Path(str(recorded)):
        yield f"the folder {name}", Path(name) / TOKENIZER_FILE
    try:
        cached = try_to_load_from_cache(name, TOKENIZER_FILE)
    except ValueError:  # no hub id
        return
    yield f"the hub's {name} on this machine", Path(cached) if isinstance(cached, str) else None


def _from_hub(given: str) -> Path:
    try:
        cached = try_to_load_from_cache(given, TOKENIZER_FILE)  # the hub may not answer for half a minute
        return Path(cached if isinstance(cached, str) else hf_hub_download(given, TOKENIZER_FILE))
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise DataError(
            f"--tokenizer {given}: there is no such folder or file, and the hub gave no {TOKENIZER_FILE} ({reason})"
        ) from error


def _read(path: Path | None, place: str, wanted: str) -> tuple[str, Decode | None]:
    """Fingerprint and `decode` of the tokenizer there; None where it is not the wanted one.

    A file with the wanted fingerprint decides by itself; only for another one is it asked what AutoTokenizer makes of
    its folder, which takes seconds.
    """
    if path is None or not path.is_file():
        raise DataError(f"{place}: there is no {TOKENIZER_FILE}")
    try:
        found = tokenizer_fingerprint(path)
        if found == wanted:
            return found, partial(Tokenizer.from_file(str(path)).decode, skip_special_tokens=False)
        if path.name != TOKENIZER_FILE:
            return found, None
        loaded = load_tokenizer(str(path.parent), "--tokenizer")
        found = fingerprint(loaded, path)
    except OSError as error:
        raise DataError(f"{place} cannot be read ({error.strerror})") from error
    except (ValueError, AttributeError, TypeError, KeyError, RecursionError) as error:
        raise DataError(f"{place}: {path} is not a tokenizer ({error})") from error
    decode = partial(loaded.backend_tokenizer.decode, skip_special_tokens=False)
    return found, decode if found == wanted else None
