"""A small corpus, and the preparation of a folder from it."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from data_prep.inputs import ReadingSpec
from data_prep.prepare import PackingSpec, prepare
from pipeline.data.shard_format import Manifest

READING = ReadingSpec(text_field="text", extensions=(".txt", ".jsonl"), exclude=(), min_bytes=0)
WORDS = ["memory", "window", "sinks", "évicted", "tokens", "漢字", "gate", "delta", "state\n", "attention", "\t=", "()"]


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve text files of 200 to 4,000 words, in two levels of folders."""
    folder = tmp_path_factory.mktemp("corpus")
    rng = random.Random(0)
    for number in range(12):
        path = folder / ("deep" if number % 3 else ".") / f"part{number:02d}.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_text(" ".join(rng.choices(WORDS, k=rng.randint(200, 4000))), encoding="utf-8")
    return folder


@pytest.fixture
def run_prepare(tiny_tokenizer: Path) -> Callable[..., Manifest]:
    """`prepare` with small units and shards; keywords override."""

    def run(inputs: list[Path | str], output: Path, **changes: object) -> Manifest:
        packing = {
            "seq_len": 256,
            "method": "concat",
            "append_eos": True,
            "unit_bytes": 40_000,
            "shard_bytes": 30_000,
        }
        packing |= {name: changes.pop(name) for name in list(changes) if name in packing}
        settings = {"tokenizer": str(tiny_tokenizer), "reading": READING, "num_workers": 1} | changes
        return prepare([str(given) for given in inputs], output=output, packing=PackingSpec(**packing), **settings)

    return run
