"""Where a drill leaves its figures: docs/results/NAME.json, with the commit and the machine they were taken on."""

import json
import os
import platform
import subprocess
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]


def record(name: str, result: dict) -> None:
    """Writes the result of one drill; an older one of the same name is replaced."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=REPOSITORY, capture_output=True, text=True).stdout.strip()

    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    is_changed = git("status", "--porcelain", "--", ":/", ":/!docs/results")  # those of other drills do not count
    facts = {
        "commit": git("rev-parse", "HEAD") + (" and uncommitted changes" if is_changed else ""),
        "machine": f"{os.cpu_count()} cores, {memory:.0f} GiB",
        "python": platform.python_version(),
    }
    path = REPOSITORY / "docs" / "results" / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result | facts, indent=1) + "\n")
    print(f"\n{path}: {json.dumps(result)}")
