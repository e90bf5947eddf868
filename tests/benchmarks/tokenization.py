"""The whole of launchers/prepare.py against bare `tokenizers` and datatrove's DocumentTokenizer, two cores each, on
128 MiB of real text; and every document's ids against those of bare `tokenizers`."""

import importlib.util
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from data_prep.tokenization import resolve_tokenizer
from pipeline.data.dataset import PackedDataset
from tests.benchmarks.text_corpus import write_corpus
from tests.benchmarks.timing import report
from tests.qwen_tokenizer import NotToBeHad, fetch_qwen_tokenizer

REPOSITORY = Path(__file__).parents[2]
CACHE = REPOSITORY / ".cache"
CORPUS_BYTES = 128 << 20
TWO_THREADS = {"TOKENIZERS_PARALLELISM": "true", "RAYON_NUM_THREADS": "2"}
ONE_THREAD_EACH = {"TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": "1"}


def run(num_bytes: int = CORPUS_BYTES, rounds: int = 3) -> dict:
    corpus, texts = write_corpus(CACHE, num_bytes)
    size = sum(len(text.encode()) for text in texts)
    print(f"corpus: {len(texts)} documents, {size / 1e6:.1f} MB in all")
    with_datatrove = importlib.util.find_spec("datatrove") is not None
    if not with_datatrove:
        print("datatrove is left out: it is not installed (pip install datatrove orjson)")
    rows = [
        {"tokenizer": name} | _measure(folder, corpus, rounds, with_datatrove)
        for name, folder in find_tokenizers().items()
    ]
    report("tokens/s on two cores: all of prepare.py, its steady state, bare tokenizers, datatrove", rows)
    return {"documents": len(texts), "bytes": size, "rows": rows}


def find_tokenizers() -> dict[str, Path]:
    """Name -> folder of those that can be had; a printed reason for the others."""
    found = {}
    try:
        found["qwen2.5"] = fetch_qwen_tokenizer(CACHE)
    except NotToBeHad as reason:
        print(f"Qwen2.5 is left out: {reason}")
    smollm2 = CACHE / "smollm2-135m"
    fetch = [sys.executable, REPOSITORY / "launchers/demo/fetch_model.py", "--output", smollm2]
    done = subprocess.run(fetch, capture_output=True, text=True)
    if done.returncode == 0:
        found["smollm2"] = smollm2
    else:
        print(f"SmolLM2 is left out: {done.stderr.strip().splitlines()[-1]}")
    return found


def _measure(tokenizer: Path, corpus: Path, rounds: int, with_datatrove: bool) -> dict:
    """Medians over `rounds` of all runs in turn; the ratios are medians of each round's own."""
    taken: dict[str, list[float]] = {"ours": [], "steady": [], "bare": [], "datatrove": []}
    with tempfile.TemporaryDirectory(dir=CACHE) as temporary:
        root = Path(temporary)
        for _ in range(rounds):
            taken["bare"].append(_run_peer("bare", tokenizer, corpus, root, TWO_THREADS))
            if with_datatrove:
                taken["datatrove"].append(_run_peer("datatrove", tokenizer, corpus, root, ONE_THREAD_EACH))
            shutil.rmtree(root / "data", ignore_errors=True)
            taken["ours"].append(_run_prepare(tokenizer, corpus, root / "data"))
            information = json.loads((root / "data" / "run.json").read_bytes())
            taken["steady"].append(information["seconds"])
        num_tokens = int(np.load(root / "lengths.npy").sum())
        differing = _count_differing(root, corpus, resolve_tokenizer(str(tokenizer), True).eos_token_id)
    rates = {f"{name}_tokens_per_s": num_tokens / statistics.median(s) if s else "" for name, s in taken.items()}
    ratios = {
        f"over_{peer}": statistics.median(p / o for p, o in zip(taken[peer], taken["ours"], strict=True))
        if taken[peer]
        else ""
        for peer in ("bare", "datatrove")
    }
    backend = information.get("tokenizer_backend", {}).get("name", "")
    return {"backend": backend, "tokens": num_tokens} | rates | ratios | {"documents_that_differ": differing}


def _run_peer(peer: str, tokenizer: Path, corpus: Path, root: Path, environment: dict[str, str]) -> float:
    if peer == "datatrove":  # it takes up a finished run where it left off
        for name in ("tokens", "logs"):
            shutil.rmtree(root / name, ignore_errors=True)
    command = [sys.executable, "-m", "tests.benchmarks.tokenization_peers", peer]
    arguments = [tokenizer / "tokenizer.json", corpus, root]
    printed = subprocess.check_output(
        [*command, *map(str, arguments)], cwd=REPOSITORY, env=os.environ | environment, stderr=subprocess.DEVNULL
    )
    return float(printed.split()[-1])


def _run_prepare(tokenizer: Path, corpus: Path, output: Path) -> float:
    """Seconds of the whole process, from its start to its end."""
    arguments = {"--inputs": corpus, "--tokenizer": tokenizer, "--output": output, "--seq_len": 2048}
    command = [sys.executable, "launchers/prepare.py", "--packing", "concat", "--num_workers", "2"]
    start = time.perf_counter()
    subprocess.run(
        [*command, *(str(part) for pair in arguments.items() for part in pair)],
        check=True,
        cwd=REPOSITORY,
        capture_output=True,
    )
    return time.perf_counter() - start


def _count_differing(root: Path, corpus: Path, eos_token_id: int) -> int:
    """Documents whose ids in the packed folder are not bare's and the EOS; absent ones count."""
    lengths = np.load(root / "lengths.npy")
    expected = np.split(np.load(root / "ids.npy"), np.cumsum(lengths)[:-1])
    names = [
        f"{file.name}:{row}"
        for file in sorted(corpus.glob("*.jsonl"))
        for row in range(len(file.read_bytes().splitlines()))
    ]
    packed: dict[str, list[tuple[int, np.ndarray]]] = {}
    for sample in PackedDataset(root / "data"):
        for bounds, piece in zip(_pairs(sample.cu_seqlens), sample.meta["documents"], strict=True):
            name = Path(piece["id"]).name
            packed.setdefault(name, []).append((piece["start"], sample.input_ids[slice(*bounds)].copy()))
    num_equal = 0
    for name, ids in zip(names, expected, strict=True):
        pieces = [ids for _, ids in sorted(packed.get(name, []), key=lambda piece: piece[0])]
        num_equal += bool(pieces) and np.array_equal(np.concatenate(pieces), [*ids, eos_token_id])
    return max(len(names), len(packed)) - num_equal


def _pairs(bounds: np.ndarray) -> list[tuple[int, int]]:
    return list(zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True))
