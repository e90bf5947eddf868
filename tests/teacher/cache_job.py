"""Makes a teacher cache in a process of its own, which may be killed just before the n-th call of one function.

`python cache_job.py DATA CACHE [MODULE:FUNCTION N]`; the function may be a method, `MODULE:CLASS.METHOD`. Prints
"ready", waits for a line or the end of its input, and prints the numbers of the shards that it wrote and whether the
cache is finished.
"""

import importlib
import json
import os
import signal
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def kill_before(name: str, number: int) -> None:
    """Has this process killed just before that function's `number`-th call."""
    module_name, path = name.split(":")
    *owners, attribute = path.split(".")
    owner = importlib.import_module(module_name)
    for part in owners:
        owner = getattr(owner, part)
    original, calls = getattr(owner, attribute), 0

    def killed(*arguments: object, **keywords: object) -> object:
        nonlocal calls
        calls += 1
        if calls == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments, **keywords)

    setattr(owner, attribute, killed)


def main() -> None:
    sys.path.insert(0, str(ROOT))
    from pipeline.data.dataset import PackedDataset
    from tests.teacher import cache_folders

    if len(sys.argv) > 3:
        kill_before(sys.argv[3], int(sys.argv[4]))
    dataset, cache = PackedDataset(sys.argv[1]), Path(sys.argv[2])
    info = cache_folders.make_info(dataset)
    print("ready", flush=True)
    sys.stdin.readline()
    cache_folders.begin_cache(cache, info)
    written = cache_folders.write_missing(cache, dataset, info)
    finished = cache_folders.complete_cache(cache, dataset.manifest, {"host": "here"})
    print(json.dumps({"written": written, "finished": finished}))


if __name__ == "__main__":
    main()
