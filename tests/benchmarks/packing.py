"""The three packings side by side on real text, and the memory of launchers/prepare.py for 20 MB and for 200 MB."""

import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from pipeline.data.shard_format import Manifest
from tests.benchmarks.text_corpus import write_corpus
from tests.benchmarks.timing import report
from tests.benchmarks.tokenization import CACHE, REPOSITORY, find_tokenizers

PACKED_BYTES, SMALL_BYTES, LARGE_BYTES = 64 << 20, 20_000_000, 200_000_000


def run() -> dict:
    corpus, _ = write_corpus(CACHE, LARGE_BYTES)
    files = sorted(corpus.glob("*.jsonl"))
    tokenizer = next(iter(find_tokenizers().values()))
    with tempfile.TemporaryDirectory(dir=CACHE) as temporary:
        output = Path(temporary) / "data"
        packings = [
            _pack(_first(files, PACKED_BYTES), tokenizer, output, method, seq_len)
            for seq_len in (2048, 24576)
            for method in ("best_fit", "concat", "none")
        ]
        report("packing 64 MiB of text", packings)
        memory = [
            {"input_MB": size / 1e6, "peak_MiB": _prepare(_spread(files, size), tokenizer, output, "best_fit", 24576)}
            for size in (SMALL_BYTES, LARGE_BYTES)
        ]
        report("peak memory of prepare.py, all its processes together (PSS), 2 workers", memory)
    return {"packing": packings, "memory": memory, "growth": memory[1]["peak_MiB"] / memory[0]["peak_MiB"]}


def _first(files: list[Path], num_bytes: int) -> list[Path]:
    chosen: list[Path] = []
    while files[len(chosen) :] and sum(file.stat().st_size for file in chosen) < num_bytes:
        chosen.append(files[len(chosen)])
    return chosen


def _spread(files: list[Path], num_bytes: int) -> list[Path]:
    """Files from all over the corpus: the same mixture of texts for every size."""
    total = sum(file.stat().st_size for file in files)
    return files[:: max(1, round(total / num_bytes))]


def _pack(files: list[Path], tokenizer: Path, output: Path, method: str, seq_len: int) -> dict:
    _prepare(files, tokenizer, output, method, seq_len)
    manifest = Manifest.load(output)
    totals = manifest.totals
    return {
        "seq_len": seq_len,
        "packing": method,
        "tokens": totals["tokens"],
        "samples": totals["samples"],
        "positions_used": totals["tokens"] / (totals["samples"] * seq_len),
        "documents_cut": totals["cut_documents"] / totals["documents"],
        "seconds": json.loads((output / "run.json").read_bytes())["seconds"],
    }


def _prepare(files: list[Path], tokenizer: Path, output: Path, method: str, seq_len: int) -> float:
    """Peak memory in MiB of the run and its workers, sampled."""
    shutil.rmtree(output, ignore_errors=True)
    flags = ["--tokenizer", tokenizer, "--output", output, "--packing", method, "--seq_len", seq_len]
    command = [sys.executable, "launchers/prepare.py", "--inputs", *files, *flags, "--num_workers", 2]
    peak = 0
    with subprocess.Popen(list(map(str, command)), cwd=REPOSITORY, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL,
                          text=True) as run:  # fmt: skip
        while run.poll() is None:
            peak = max(peak, _memory(run.pid))
            time.sleep(0.05)
        assert run.returncode == 0, run.stderr.read()
    return peak / 2**20


def _memory(pid: int) -> int:
    total = 0
    for process in [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]:
        try:
            total += process.memory_full_info().pss
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return total
