"""The loader, shuffled and with every sample's digest checked, against bare webdataset reading the same tars in order:
local disk, page cache warm. And how long a set of 10,000 samples takes from opening to the first batch."""

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import webdataset

from pipeline.data.loader import PackedDataset, SampleStream
from tests.benchmarks.timing import report
from tests.data.folders import make_folder

SETS = ((2048, 8000), (24576, 2000))  # tokens in a sample, samples
SHARD_BYTES = 32 << 20
FIRST_BATCH = """
import sys, time
from pipeline.config import TrainConfig, WindowConfig
from pipeline.data.loader import PackedDataset
from pipeline.training.batches import BatchSource
from pipeline.training.preflight import open_stream
start = time.perf_counter()
train = TrainConfig(global_batch_size=8, max_steps=100)
stream = open_stream(PackedDataset(sys.argv[1]), train)
source = BatchSource(stream, train, WindowConfig(), rank=0, dp_size=1, position=0, num_steps=100)
assert len(source.next_step().micro_batches) == 8
print(time.perf_counter() - start)
source.close()
"""


def samples_per_second(read: Callable[[], int]) -> tuple[float, float]:
    """Samples per second of wall time, and per second of processor time of all threads."""
    wall, processor = time.perf_counter(), time.process_time()
    count = read()
    return count / (time.perf_counter() - wall), count / (time.process_time() - processor)


def run(sets: tuple[tuple[int, int], ...] = SETS, repeats: int = 7) -> dict:
    rows = []
    with tempfile.TemporaryDirectory() as root:
        for seq_len, num_samples in sets:
            folder = Path(root) / str(seq_len)
            make_folder(folder, {"data": num_samples}, seq_len=seq_len, shard_bytes=SHARD_BYTES)
            rows.append({"tokens": seq_len, "samples": num_samples} | _against_webdataset(folder, repeats))
        folder = make_folder(Path(root) / "opening", {"data": 10_000}, seq_len=2048, shard_bytes=SHARD_BYTES)
        command = [sys.executable, "-c", FIRST_BATCH, str(folder)]
        opening = [float(subprocess.check_output(command, text=True, timeout=120)) for _ in range(3)]
    report("samples/s, shuffled and checked, against bare webdataset in order", rows)
    first = report("10,000 samples: opening to first batch", [{"median_s": statistics.median(opening)}])
    return {"samples_per_s": rows, "first_batch": first}


def _against_webdataset(folder: Path, repeats: int) -> dict[str, float]:
    dataset = PackedDataset(folder)
    stream = SampleStream(dataset, seed=0)
    tars = [str(folder / entry.tar_name) for entry in dataset.manifest.shards]

    def ours() -> int:
        return sum(1 for _ in stream.prefetch(range(len(dataset)), depth=16, num_workers=2))

    def peer() -> int:
        return sum(1 for _ in webdataset.WebDataset(tars, shardshuffle=False).decode())

    assert ours() == peer() == len(dataset)  # and the page cache is warm
    pairs = [(samples_per_second(ours), samples_per_second(peer)) for _ in range(repeats)]
    names = ("wall", "processor")
    found = {
        f"{who}_per_{name}_s": statistics.median(pair[side][k] for pair in pairs)
        for side, who in enumerate(("ours", "webdataset"))
        for k, name in enumerate(names)
    }
    ratios = {f"{name}_ratio": statistics.median(a[k] / b[k] for a, b in pairs) for k, name in enumerate(names)}
    return found | ratios
