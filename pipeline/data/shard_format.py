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
configuration alone.
"""

import hashlib
import io
import json
import tarfile
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from pipeline.errors import UserError

FORMAT_VERSION = 1
MANIFEST_NAME = "manifest.json"
MANIFEST_DIGEST_NAME = "manifest.json.sha256"
RUN_INFO_NAME = "run.json"
DIGEST_BYTES = 16
INDEX_DTYPE = np.dtype([("offset", "<i8"), ("length", "<i8"), ("tokens", "<i8"), ("digest", "u1", (DIGEST_BYTES,))])


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

    `name` is the stem that both share.
    """

    name: str
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

    `packing` and `reading` are the parameters of those names; `inputs` lists every file with its size,
    sha256, and what was dropped from it; `dropped` sums that up as {"files" | "documents" | "tokens":
    {reason: count}}; `totals` are the shards' samples, tokens and documents.
    """

    tokenizer_name: str
    tokenizer_sha256: str
    seq_len: int
    packing: dict
    reading: dict
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
        raw = path.read_bytes()
        if mark.read_bytes() != completion_mark(raw):
            raise DataError(f"{path} does not match {MANIFEST_DIGEST_NAME}: it was altered after it was written")
        fields = json.loads(raw)
        if fields.get("format_version") != FORMAT_VERSION:
            raise DataError(
                f"{path} has format version {fields.get('format_version')}, this code reads {FORMAT_VERSION}"
            )
        fields["shards"] = [ShardEntry(**s) for s in fields["shards"]]
        return cls(**fields)


def completion_mark(manifest: bytes) -> bytes:
    """Content of manifest.json.sha256, in the format that `sha256sum --check` reads."""
    return f"{hashlib.sha256(manifest).hexdigest()}  {MANIFEST_NAME}\n".encode()


def tokenizer_fingerprint(tokenizer_json: Path) -> str:
    """sha256 of a tokenizer.json in canonical form (key order and white space do not count)."""
    content = json.loads(tokenizer_json.read_bytes())
    for volatile in ("truncation", "padding"):  # set by whoever used the tokenizer last; they change no id
        content.pop(volatile, None)
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
    raw = path.read_bytes()
    if hashlib.sha256(raw).hexdigest() != entry.index_sha256:
        raise DataError(f"{path} does not match its sha256 in the manifest")
    index = np.load(io.BytesIO(raw), allow_pickle=False)
    if index.dtype != INDEX_DTYPE or index.shape != (entry.num_samples,):
        raise DataError(f"{path} holds {index.dtype} {index.shape}, not the index of {entry.num_samples} samples")
    if int(index["tokens"].sum()) != entry.num_tokens:
        raise DataError(f"{path} adds up to {index['tokens'].sum()} tokens, the manifest says {entry.num_tokens}")
    return index


def sample_digest(raw: bytes) -> np.ndarray:
    """The index's digest, uint8 [16], of a sample's byte range in its tar."""
    return np.frombuffer(hashlib.blake2b(raw, digest_size=DIGEST_BYTES).digest(), np.uint8)


def decode_sample(raw: bytes, where: str) -> PackedSample:
    """Decodes one sample from its byte range in a tar; `where` names it in errors. Never unpickles.

    Raises:
        DataError: members that do not make one sample, or arrays of another dtype or shape.
    """
    try:
        with tarfile.open(fileobj=io.BytesIO(raw), mode="r:") as tar:
            members = {m.name: tar.extractfile(m).read() for m in tar if m.isfile()}
        (key,) = {name.split(".", 1)[0] for name in members}
        parts = {name.split(".", 1)[1]: content for name, content in members.items()}
        arrays = {
            name[: -len(".npy")]: np.load(io.BytesIO(content), allow_pickle=False)
            for name, content in parts.items()
            if name.endswith(".npy")
        }
        sample = PackedSample(
            key,
            arrays["input_ids"],
            arrays["cu_seqlens"],
            arrays.get("loss_mask"),
            json.loads(parts["meta.json"]),
        )
    except (tarfile.TarError, ValueError, KeyError, IndexError, EOFError) as error:
        raise DataError(f"{where}: not a packed sample ({error})") from error
    _check_sample(sample, where)
    return sample


def _check_sample(sample: PackedSample, where: str) -> None:
    ids, bounds, mask = sample.input_ids, sample.cu_seqlens, sample.loss_mask
    if ids.dtype != np.uint32 or ids.ndim != 1 or bounds.dtype != np.int32 or bounds.ndim != 1:
        raise DataError(f"{where}: input_ids must be uint32 [T] and cu_seqlens int32 [n+1]")
    if len(bounds) < 2 or bounds[0] != 0 or bounds[-1] != len(ids) or (np.diff(bounds) <= 0).any():
        raise DataError(f"{where}: cu_seqlens must rise from 0 to the {len(ids)} tokens of the sample")
    if mask is not None and (mask.dtype != np.uint8 or mask.shape != ids.shape):
        raise DataError(f"{where}: loss_mask must be uint8 [{len(ids)}]")
    documents = sample.meta.get("documents") if isinstance(sample.meta, dict) else None
    if not isinstance(documents, list) or len(documents) != len(bounds) - 1:
        raise DataError(f"{where}: meta.json must list the {len(bounds) - 1} documents of cu_seqlens")
