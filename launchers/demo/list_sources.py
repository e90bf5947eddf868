"""Lists this Python's own standard library sources as long documents, some files held out whole.

    python launchers/demo/list_sources.py --output runs/demo/sources     # -> train.txt, heldout.txt

Every k-th file of the sorted list is held out, so the split depends on nothing but the Python version. Tables
(encodings, help topics, build settings) and tests are left out: they are long, but not text that one reads.
"""

import sysconfig
from pathlib import Path

from pipeline.config import ListSourcesConfig, parse_cli
from pipeline.errors import UserError, run_cli

LEFT_OUT = {"test", "tests", "idle_test", "site-packages", "dist-packages", "encodings", "pydoc_data"}
MIN_HELD_OUT = 16


def find_sources(root: Path, min_bytes: int) -> list[Path]:
    """Python sources of at least `min_bytes` below `root`, sorted by path."""
    return [
        path
        for path in sorted(root.rglob("*.py"))
        if not LEFT_OUT & set(path.relative_to(root).parts)
        and not path.name.startswith("_sysconfigdata")
        and path.stat().st_size >= min_bytes
    ]


def main() -> None:
    config = parse_cli(ListSourcesConfig)
    root = Path(sysconfig.get_paths()["stdlib"])
    sources = find_sources(root, config.min_bytes)
    held_out = sources[config.held_out_every - 1 :: config.held_out_every]
    if len(held_out) < MIN_HELD_OUT:
        raise UserError(
            f"{root}: only {len(sources)} sources of {config.min_bytes} bytes or more, so {len(held_out)} would be "
            f"held out and {MIN_HELD_OUT} are needed; lower --min_bytes or --held_out_every"
        )
    config.output.mkdir(parents=True, exist_ok=True)
    for name, files in (("train", [p for p in sources if p not in held_out]), ("heldout", held_out)):
        (config.output / f"{name}.txt").write_text("".join(f"{path}\n" for path in files))
        size = sum(path.stat().st_size for path in files)
        print(f"{config.output / name}.txt: {len(files)} files, {size / 2**20:.1f} MiB")


if __name__ == "__main__":
    run_cli(main)
