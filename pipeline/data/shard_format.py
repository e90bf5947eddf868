"""The packed-shard contract between data_prep (writer) and the loader (reader). No torch here.

A data folder holds
    {shard}.tar         webdataset samples {key}.input_ids.npy uint32 [T], {key}.cu_seqlens.npy int32 [n+1],
                        {key}.loss_mask.npy uint8 [T] (only when the source has labels), {key}.meta.json
    {shard}.idx.npy     INDEX_DTYPE [num_samples]: where each sample lies in the tar, its tokens, its digest
    manifest.json       everything that determines the folder's content, with size and sha256 of every file
    manifest.json.sha256  written last: the folder is complete iff it is there and matches
    run.json            what may differ between equal runs (time, host, worker count)

The tars are byte-reproducible. `cu_seqlens` are document bounds inside the sample, 0 first and T last. A
sample's meta.json is {"documents": [...]}, one entry for each document or piece of one: "id" (unique over the
folder), "start" and "end" (the piece's tokens within its document), "tokens" (of the whole document) and
"origin" (where its text lies: bytes, and the row of a JSONL or parquet file). A sample's key is
`{unit}-{number in unit}`; a shard's name is `shard-{unit}-{number in unit}`: both depend on the input and the
configuration alone. All samples of a shard come from one source.
"""

import hashlib
import io
import json
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from pipeline.data.manifest_fields import parse_manifest
from pipeline.data.tar_members import npy_view, split_members
from pipeline.errors import UserError

FORMAT_VERSION = 2
MANIFEST_NAME = "manifest.json"
MANIFEST_DIGEST_NAME = "manifest.json.sha256"
RUN_INFO_NAME = "run.json"
DIGEST_BYTES = 16
INDEX_DTYPE = np.dtype([("offset", "<i8"), ("length", "<i8"), ("tokens", "<i8"), ("digest", "u1", (DIGEST_BYTES,))])

MEMBER_NAMES = ("input_ids.npy", "cu_seqlens.npy", "loss_mask.npy", "meta.json")
MEMBER_DTYPES = dict(zip(MEMBER_NAMES, map(np.dtype, ("<u4", "<i4", "|u1")), strict=False))
_SHARD_NAME = re.compile(r"[A-Za-z0-9_-]+")
_SHA256 = re.compile(r"([0-9a-f]{64}){2}")
_MEMBER = re.compile(rb"[A-Za-z0-9_-]+\.(input_ids\.npy|cu_seqlens\.npy|loss_mask\.npy|meta\.json)")


class DataError(UserError):
    """A data folder, shard or sample that is missing, incomplete, damaged or does not fit."""


@dataclass(frozen=True)
class PackedSample:
    """One sample: `input_ids` uint32 [T], `cu_seqlens` int32 [n+1], `loss_mask` uint8 [T] or None, `meta`."""

    key: str
    input_ids: np.ndarray
    cu_seqlens: np.ndarray
    loss_mask: np.ndarray | None
    meta: dict

    @property
    def longest_document(self) -> int:
        return int(np.diff(self.cu_seqlens).max())


@dataclass(frozen=True)
class ShardEntry:
    """One tar and its index as the manifest lists them; sizes in bytes, digests as sha256 hex.

    `name` is the stem that both share; `source` names the source of all its samples.
    """

    name: str
    source: str
    size: int
    sha256: str
    index_size: int
    index_sha256: str
    num_samples: int
    num_tokens: int

    @property
    def tar_name(self) -> str:
        return f"{self.name}.tar"

    @property
    def index_name(self) -> str:
        return f"{self.name}.idx.npy"


@dataclass
class Manifest:
    """manifest.json. Nothing in it depends on time, host or the number of workers.

    `packing` holds the parameters of that name. `sources` lists the sources in order: "name", "weight" (share of a
    mixture's epoch, or null where none was asked for), "reading" (how its inputs are read), "labels" (whether its
    samples have a loss_mask), "totals" and "dropped" as below but of this source. `inputs` lists every file with its
    source, size, sha256, what was dropped from it, and in "ignored_fields" what of its conversations was not read.
    `dropped` sums up what was left out as {"files" | "documents" | "tokens": {reason: count}}; `totals` are samples,
    tokens, documents, text_bytes, cut_documents (spread over several samples), duplicate_documents (same text as an
    earlier one, whether kept or dropped).
    """

    tokenizer_name: str
    tokenizer_sha256: str
    seq_len: int
    packing: dict
    sources: list[dict]
    shards: list[ShardEntry]
    inputs: list[dict]
    dropped: dict
    format_version: int = FORMAT_VERSION
    totals: dict = field(default_factory=dict)

    def to_bytes(self) -> bytes:
        return (json.dumps(asdict(self), indent=1, sort_keys=True) + "\n").encode()

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.to_bytes()).hexdigest()

    @classmethod
    def load(cls, folder: Path) -> "Manifest":
        """Reads and checks a finished folder's manifest.

        Raises:
            DataError: the folder or manifest is missing, unfinished, altered, or of another format version.
        """
        path, mark = folder / MANIFEST_NAME, folder / MANIFEST_DIGEST_NAME
        if not folder.is_dir():
            raise DataError(f"data folder {folder} does not exist; make one with launchers/prepare.py")
        if not path.is_file() or not mark.is_file():
            raise DataError(
                f"data folder {folder} is not finished ({MANIFEST_DIGEST_NAME}, written last, is missing); "
                f"run launchers/prepare.py on it again"
            )
        return cls.parse(path.read_bytes(), mark.read_bytes(), str(path))

    @classmethod
    def parse(cls, raw: bytes, mark: bytes, where: str) -> "Manifest":
        """The manifest in the bytes `raw` of manifest.json; `mark`: those of the completion mark beside it.

        Raises:
            DataError: names `where`: altered, of another format version, without a field or with one of another type,
                or with names that are no file names.
        """
        if mark != completion_mark(raw):
            raise DataError(f"{where} does not match {MANIFEST_DIGEST_NAME}: it was altered after it was written")
        try:
            fields = parse_manifest(raw, FORMAT_VERSION)
            fields["shards"] = [ShardEntry(**s) for s in fields["shards"]]
            manifest = cls(**fields)
        except (ValueError, TypeError) as error:
            raise DataError(f"{where}: {error}; prepare the data again") from error
        sources = {source["name"] for source in manifest.sources}
        for entry in manifest.shards:
            if entry.source not in sources:
                raise DataError(
                    f"{where} lists {entry.name} of the source {entry.source!r}, which it does not describe"
                )
            # They become parts of paths, and the folder may be a stranger's.
            if not (_SHARD_NAME.fullmatch(entry.name) and _SHA256.fullmatch(entry.sha256 + entry.index_sha256)):
                raise DataError(
                    f"{where} lists a shard {entry.name!r} that data_prep did not name; prepare the data again"
                )
            if entry.num_samples * INDEX_DTYPE.itemsize > entry.index_size:
                raise DataError(f"{where} lists {entry.name} with more samples than its index has room for")
        return manifest


def completion_mark(manifest: bytes) -> bytes:
    """Content of manifest.json.sha256, in the format that `sha256sum --check` reads."""
    return f"{hashlib.sha256(manifest).hexdigest()}  {MANIFEST_NAME}\n".encode()


def tokenizer_fingerprint(tokenizer_json: Path) -> str:
    """sha256 of a tokenizer.json in canonical form (key order and white space do not count).

    A model's is `pipeline.tokenizer.fingerprint`: its tokenizer may be another one than the file describes.
    """
    content = json.loads(tokenizer_json.read_bytes())
    for volatile in ("truncation", "padding"):  # set by whoever used the tokenizer last; they change no id
        content.pop(volatile, None)
    model = content.get("model")
    if isinstance(model, dict) and model.get("dropout"):  # nobody draws: `pipeline.tokenizer`
        model["dropout"] = None
    canonical = json.dumps(content, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def load_index(folder: Path, entry: ShardEntry) -> np.ndarray:
    """One shard's index, INDEX_DTYPE [num_samples], checked (with the tar's size) against the manifest.

    Raises:
        DataError: names the file that is missing or does not match.
    """
    for name, size in ((entry.tar_name, entry.size), (entry.index_name, entry.index_size)):
        path = folder / name
        if not path.is_file():
            raise DataError(f"{path} is missing though the manifest lists it")
        if path.stat().st_size != size:
            raise DataError(f"{path} has {path.stat().st_size} bytes, the manifest says {size}")
    path = folder / entry.index_name
    return parse_index(path.read_bytes(), entry, str(path))


def parse_index(raw: bytes, entry: ShardEntry, where: str) -> np.ndarray:
    """The index in the bytes `raw` of its file, INDEX_DTYPE [num_samples], checked against the manifest.

    Raises:
        DataError: names `where`.
    """
    if hashlib.sha256(raw).hexdigest() != entry.index_sha256:
        raise DataError(f"{where} does not match its sha256 in the manifest")
    header = _index_header(entry.num_samples)
    if len(raw) != len(header) + entry.num_samples * INDEX_DTYPE.itemsize or not raw.startswith(header):
        raise DataError(f"{where} is not the index of {entry.num_samples} samples")
    index = np.frombuffer(raw, INDEX_DTYPE, entry.num_samples, len(header))
    lasts = entry.size - index["length"]  # not offset + length, which may overflow
    if (index["offset"] < 0).any() or (index["length"] <= 0).any() or (index["offset"] > lasts).any():
        raise DataError(f"{where} places samples outside the {entry.size} bytes of {entry.tar_name}")
    if (index["tokens"] <= 0).any():
        raise DataError(f"{where} lists samples without tokens")
    if int(index["tokens"].sum()) != entry.num_tokens:
        raise DataError(f"{where} adds up to {index['tokens'].sum()} tokens, the manifest says {entry.num_tokens}")
    return index


def _index_header(num_samples: int) -> bytes:
    """The one header that an index of so many samples has; nothing else that an .npy may hold is ever parsed."""
    buffer = io.BytesIO()
    descr = np.lib.format.dtype_to_descr(INDEX_DTYPE)
    fields = {"descr": descr, "fortran_order": False, "shape": (num_samples,)}
    np.lib.format.write_array_header_1_0(buffer, fields)
    return buffer.getvalue()


def sample_digest(raw: bytes, key: bytes = b"") -> np.ndarray:
    """The index's digest, uint8 [16], of a sample's byte range in its tar.

    Args:
        raw: the bytes.
        key: binds the digest to what the sample belongs to, where that is more than its folder's manifest says.
    """
    return np.frombuffer(hashlib.blake2b(raw, digest_size=DIGEST_BYTES, key=key).digest(), np.uint8)


def decode_sample(raw: bytes, where: str) -> PackedSample:
    """Decodes one sample from its byte range in a tar; `where` names it in errors.

    Takes the very members that data_prep writes and nothing else a tar or an .npy may hold: no paths, no links, no
    pickled objects. The arrays are read-only views of `raw`.

    Raises:
        DataError: members that do not make one sample, or arrays of another dtype or shape.
    """
    try:
        members = split_members(raw, _MEMBER)
        key = members[0][0].partition(".")[0]
        names = [name.removeprefix(f"{key}.") for name, _, _ in members]
        if names not in (["input_ids.npy", "cu_seqlens.npy", "meta.json"], list(MEMBER_NAMES)):
            raise ValueError(f"its members are {[name for name, _, _ in members]}")
        spans = {name: (start, end) for name, (_, start, end) in zip(names, members, strict=True)}
        meta = json.loads(raw[slice(*spans.pop("meta.json"))])
        arrays = {name: npy_view(raw, *span, name, (MEMBER_DTYPES[name],)) for name, span in spans.items()}
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not a packed sample ({error})") from error
    sample = PackedSample(key, arrays["input_ids.npy"], arrays["cu_seqlens.npy"], arrays.get("loss_mask.npy"), meta)
    _check_sample(sample, where)
    return sample


def _check_sample(sample: PackedSample, where: str) -> None:
    ids, bounds, mask = sample.input_ids, sample.cu_seqlens, sample.loss_mask
    if len(bounds) < 2 or bounds[0] != 0 or bounds[-1] != len(ids) or (np.diff(bounds) <= 0).any():
        raise DataError(f"{where}: cu_seqlens must rise from 0 to the {len(ids)} tokens of the sample")
    if mask is not None and mask.shape != ids.shape:
        raise DataError(f"{where}: loss_mask must be uint8 [{len(ids)}], it has {len(mask)}")
    documents = sample.meta.get("documents") if isinstance(sample.meta, dict) else None
    if not isinstance(documents, list) or len(documents) != len(bounds) - 1:
        raise DataError(f"{where}: meta.json must list the {len(bounds) - 1} documents of cu_seqlens")
