"""What a run is going to do: its inputs, hashed and cut into work units, and the manifest as far as it is known."""

import json
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

from tqdm import tqdm

from data_prep.conversations import ConversationEncoder
from data_prep.inputs import InputFile, find_inputs
from data_prep.readers import Extent, Inspection, InvalidDocument, inspect_input, read_documents
from data_prep.sources import Source
from data_prep.tokenization import TokenizerSpec
from data_prep.units import MAX_UNITS, DocumentSpec, PackingSpec, Unit, group
from data_prep.workers import OrderedMap
from pipeline.data.shard_format import DataError, Manifest
from pipeline.errors import escape_controls

BATCH_BYTES = 4 << 20
SAMPLED_FILES = 16
SAMPLED_CHARACTERS = 1 << 15


@dataclass(frozen=True, eq=False)
class SourceInputs:
    """A source with its files, and how many were left out by reason."""

    source: Source
    files: list[InputFile]
    skipped: dict[str, int]


def find_files(sources: Sequence[Source]) -> list[SourceInputs]:
    """The files of each source; those of a dataset are left to `fetch_dataset`.

    Raises:
        DataError: an input that does not exist or matches nothing.
    """
    return [SourceInputs(s, *find_inputs(s)) if s.dataset is None else SourceInputs(s, [], {}) for s in sources]


def check_apart(found: Sequence[SourceInputs], output: Path) -> None:
    """Refuses to read what the run itself writes.

    Raises:
        DataError: an input file lies in `output`.
    """
    folder = output.resolve()
    for file in (file for s in found for file in s.files):
        path = file.url.removeprefix("file://")
        if path.startswith("/") and Path(path).is_relative_to(folder):
            raise DataError(f"--output {output} holds the input {path}; name a folder apart from the inputs")


def fetch_dataset(found: SourceInputs, spool: Path, unit_bytes: int) -> SourceInputs:
    """A dataset's Arrow files; one that is not a set of such files is written into `spool` first."""
    if found.source.dataset is None:
        return found
    from data_prep.hf_datasets import dataset_inputs  # takes a second, which runs on files do not need

    return replace(found, files=dataset_inputs(found.source, spool, unit_bytes))


def with_datasets_of(planned: Manifest, finished: Manifest) -> Manifest:
    """The plan with the inputs that a finished folder lists for its datasets, which are not read again for it."""
    datasets = {source["name"] for source in planned.sources if source["reading"]["dataset"] is not None}
    inputs = [
        entry
        for source in planned.sources
        for entry in (finished.inputs if source["name"] in datasets else planned.inputs)
        if entry["source"] == source["name"]
    ]
    return replace(planned, inputs=inputs)


class Inspections:
    """Hash and extents of every file of every source; the work begins at once, in the other processes."""

    def __init__(self, found: Sequence[SourceInputs], unit_bytes: int, run: OrderedMap) -> None:
        self._batches = [(s.source, batch) for s in found for batch in _batches(s.files)]
        self._pending = run(partial(_inspect_batch, unit_bytes=unit_bytes), self._batches)

    def collect(self) -> dict[str, list[Inspection]]:
        """By source, in the order of its files.

        Raises:
            DataError: a file that cannot be used.
        """
        inspections: dict[str, list[Inspection]] = defaultdict(list)
        sizes = [sum(file.size for file in files) for _, files in self._batches]
        with tqdm(total=sum(sizes), desc="checking inputs", unit="B", unit_scale=True) as progress:
            for (source, _), size, results in zip(self._batches, sizes, self._pending, strict=True):
                inspections[source.name] += results
                progress.update(size)
        return inspections


def _batches(files: list[InputFile]) -> Iterator[list[InputFile]]:
    """Groups small files: handing each one to another process costs more than to read it."""
    batch: list[InputFile] = []
    size = 0
    for file in files:
        batch.append(file)
        size += file.size
        if size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _inspect_batch(task: tuple[Source, list[InputFile]], unit_bytes: int) -> list[Inspection]:
    source, files = task
    return [inspect_input(file, source, unit_bytes) for file in files]


def plan_manifest(
    found: Sequence[SourceInputs],
    inspections: dict[str, list[Inspection]],
    documents: DocumentSpec,
    packing: PackingSpec,
    dedup: str,
) -> Manifest:
    """The manifest as far as it is known before the work: parameters, and inputs with size and sha256."""
    tokenizer = documents.tokenizer
    return Manifest(
        tokenizer_name=tokenizer.name,
        tokenizer_sha256=tokenizer.sha256,
        seq_len=packing.seq_len,
        packing={
            "method": packing.method,
            "append_eos": tokenizer.eos_token_id is not None,
            "eos_token_id": tokenizer.eos_token_id,
            "special_tokens_in_text": tokenizer.special_tokens_in_text,
            "min_doc_tokens": documents.min_tokens,
            "max_doc_tokens": documents.max_tokens,
            "dedup": dedup,
            "unit_bytes": packing.unit_bytes,
            "shard_bytes": packing.shard_bytes,
        },
        sources=[_source_entry(s, tokenizer) for s in found],
        shards=[],
        inputs=[
            {"source": s.source.name, "name": f.name, "format": f.format, "size": f.size, "sha256": inspection.sha256}
            for s in found
            for f, inspection in zip(s.files, inspections[s.source.name], strict=True)
        ],
        dropped={},
    )


def _source_entry(found: SourceInputs, tokenizer: TokenizerSpec) -> dict:
    """The manifest's entry; paths of inputs are left out, since they differ between machines."""
    source = found.source
    reading = asdict(source)
    for name in ("name", "weight", "inputs", "folder"):
        reading.pop(name)
    if source.dataset is not None:
        reading["dataset"].pop("streaming")  # the rows are the same
        if Path(source.dataset.path).exists():
            reading["dataset"]["path"] = Path(source.dataset.path).name
    if source.conversations is not None:
        reading["chat_template_sha256"] = ConversationEncoder(tokenizer).template_sha256
    return {
        "name": source.name,
        "weight": source.weight,
        "labels": source.conversations is not None,
        "reading": reading,
        "dropped": {"files": found.skipped},
    }


def make_units(
    found: Sequence[SourceInputs],
    inspections: dict[str, list[Inspection]],
    documents: DocumentSpec,
    packing: PackingSpec,
    folder: Path,
) -> list[Unit]:
    """The work units, numbered from 0; none holds documents of two sources.

    Raises:
        DataError: nothing to read, or more units than shard names have numbers for.
    """
    groups = [
        (s.source, extents)
        for s in found
        for extents in group((e for i in inspections[s.source.name] for e in i.extents), packing.unit_bytes)
    ]
    if not groups:
        raise DataError(f"the {sum(len(s.files) for s in found)} input files hold no row and no text")
    if len(groups) > MAX_UNITS:
        raise DataError(f"--unit_bytes {packing.unit_bytes} makes {len(groups):,} work units, more than {MAX_UNITS:,}")
    return [Unit(n, source, extents, documents, packing, folder) for n, (source, extents) in enumerate(groups)]


def warn_if_longer_than_model(tokenizer_json: Path, seq_len: int) -> None:
    """Says on stderr when samples would be longer than what the model beside the tokenizer was made for."""
    for name, key in (("config.json", "max_position_embeddings"), ("tokenizer_config.json", "model_max_length")):
        path = tokenizer_json.with_name(name)
        try:
            limit = json.loads(path.read_bytes()).get(key) if path.is_file() else None
        except (ValueError, AttributeError):  # whoever needs the file says so
            continue
        if isinstance(limit, int | float) and seq_len > limit:
            warning = f"warning: --seq_len {seq_len} is longer than the model's {key} {limit} ({path})"
            print(escape_controls(warning), file=sys.stderr)
            return


def sample_texts(found: Sequence[SourceInputs]) -> list[str]:
    """Beginnings of documents from files all over the input."""
    files = [(s.source, file) for s in found if s.source.conversations is None for file in s.files]
    step = -(-len(files) // SAMPLED_FILES) or 1
    return [text for source, file in files[::step] for text in _first_text(source, file)]


def _first_text(source: Source, file: InputFile) -> Iterator[str]:
    """The beginning of the file's first usable document, if it has one."""
    whole = Extent(file, 0, None, 0, file.size)
    for raw in read_documents(whole, source, Counter()):
        try:
            yield (raw.content if isinstance(raw.content, str) else next(raw.content))[:SAMPLED_CHARACTERS]
            return
        except InvalidDocument:
            continue
