"""The two peers of the tokenization benchmark, each a process of its own that prints the seconds of its work alone:
`python -m tests.benchmarks.tokenization_peers bare|datatrove TOKENIZER_JSON CORPUS OUTPUT`."""

import json
import sys
import time
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

BATCH = 1000


def bare(tokenizer_json: str, corpus: Path, output: Path) -> float:
    """`tokenizers.encode_batch_fast` on texts in memory, in the threads that the environment allows; the ids of all
    documents go to OUTPUT/ids.npy, their lengths to OUTPUT/lengths.npy, outside of the time."""
    tokenizer = Tokenizer.from_file(tokenizer_json)
    tokenizer.encode_special_tokens = True
    files = sorted(corpus.glob("*.jsonl"))
    texts = [json.loads(line)["text"] for file in files for line in file.read_bytes().splitlines()]
    ids, seconds = [], 0.0
    for i in range(0, len(texts), BATCH):
        start = time.perf_counter()
        encodings = tokenizer.encode_batch_fast(texts[i : i + BATCH], add_special_tokens=False)
        seconds += time.perf_counter() - start
        ids += [np.array(encoding.ids, np.uint32) for encoding in encodings]
    np.save(output / "lengths.npy", np.array([len(a) for a in ids]))
    np.save(output / "ids.npy", np.concatenate(ids))
    return seconds


def datatrove(tokenizer_json: str, corpus: Path, output: Path) -> float:
    """datatrove's DocumentTokenizer, without its shuffle, as two tasks in two processes; from start to end of its
    executor."""
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.tokens import DocumentTokenizer

    tokenizer = DocumentTokenizer(str(output / "tokens"), tokenizer_json, shuffle_documents=False)
    executor = LocalPipelineExecutor(
        [JsonlReader(str(corpus)), tokenizer], tasks=2, workers=2, logging_dir=str(output / "logs")
    )
    start = time.perf_counter()
    executor.run()
    return time.perf_counter() - start


if __name__ == "__main__":
    peer, tokenizer_json, corpus, output = sys.argv[1:]
    print({"bare": bare, "datatrove": datatrove}[peer](tokenizer_json, Path(corpus), Path(output)))
