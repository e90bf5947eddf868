"""A small corpus, and the preparation of a folder from it."""

import json
import random
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from pipeline.data.shard_format import Manifest

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
    """`prepare` with small units and shards; keywords override fields of PackingSpec, Source and PrepareSpec."""
    from data_prep.prepare import PrepareSpec, prepare
    from data_prep.sources import Source
    from data_prep.units import PackingSpec
    from data_prep.workers import run_with_processes

    def run(inputs: list[Path | str], output: Path, num_workers: int = 1, **changes: object) -> Manifest:
        packing = {"seq_len": 256, "method": "concat", "unit_bytes": 40_000, "shard_bytes": 30_000}
        packing |= {name: changes.pop(name) for name in list(changes) if name in packing}
        source = {"name": "default", "inputs": [str(given) for given in inputs], "extensions": [".txt", ".jsonl"]}
        source |= {name: changes.pop(name) for name in list(changes) if name in Source.__annotations__}
        sources = changes.pop("sources", None) or [Source(**source)]
        spec = PrepareSpec(**({"tokenizer": str(tiny_tokenizer), "packing": PackingSpec(**packing)} | changes))
        return run_with_processes(partial(prepare, sources, output, spec), num_workers)

    return run


@pytest.fixture
def with_template(smollm2: Path, tmp_path: Path) -> Callable[..., Path]:
    """Makes a folder with SmolLM2's tokenizer and a given chat template."""

    def write(template: str, **changes: object) -> Path:
        shutil.copy(smollm2 / "tokenizer.json", tmp_path)
        config = json.loads((smollm2 / "tokenizer_config.json").read_text()) | {"chat_template": template} | changes
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
        return tmp_path

    return write
