"""Makes a teacher cache in a process of its own, which may be killed just before the n-th call of one function.

`python cache_job.py DATA CACHE [MODULE:FUNCTION N]`; the function may be a method, `MODULE:CLASS.METHOD`. Prints
"ready", waits for a line or the end of its input, and prints the numbers of the shards that it wrote and whether the
cache is finished.
"""

import json
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def main() -> None:
    sys.path.insert(0, str(ROOT))
    from pipeline.data.dataset import PackedDataset
    from tests.killed_run import act_before
    from tests.teacher import cache_folders

    if len(sys.argv) > 3:
        act_before(sys.argv[3], int(sys.argv[4]))
    dataset, cache = PackedDataset(sys.argv[1]), Path(sys.argv[2])
    info = cache_folders.make_info(dataset)
    print("ready", flush=True)
    sys.stdin.readline()
    cache_folders.begin_cache(cache, info)
    written = cache_folders.write_missing(cache, dataset, info)
    finished = cache_folders.complete_cache(cache, dataset, {"host": "here"})
    print(json.dumps({"written": written, "finished": finished}))


if __name__ == "__main__":
    main()
