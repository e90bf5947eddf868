"""Tokenises and packs documents: `prepare.py --inputs docs/ --tokenizer MODEL --output DATA`."""

import os

from pipeline.config import PrepareConfig, parse_cli
from pipeline.errors import GOES_ON, escape_controls, run_cli


def main() -> None:
    """Makes the packed folder, then prints what is in it and what was left out."""
    config = parse_cli(PrepareConfig)
    # One thread a process: --num_workers or the MPI ranks alone decide how many cores are used.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from functools import partial

    from data_prep.prepare import PrepareSpec, prepare
    from data_prep.sources import Conversations, Source, load_sources
    from data_prep.summary import describe
    from data_prep.units import PackingSpec
    from data_prep.workers import run_with_mpi, run_with_processes

    if config.sources is not None:
        sources = load_sources(config.sources)
    else:
        conversations = Conversations(config.messages_field) if config.messages_field else None
        given = {name: getattr(config, name) for name in ("inputs", "text_field", "exclude", "min_bytes")}
        if config.extensions:
            given["extensions"] = config.extensions
        sources = [Source("default", conversations=conversations, **given)]
    spec = PrepareSpec(
        packing=PackingSpec(config.seq_len, config.packing, config.unit_bytes, config.shard_bytes),
        **{name: getattr(config, name) for name in PrepareSpec.__annotations__ if name != "packing"},
    )
    work = partial(prepare, sources, config.output, spec)
    manifest = run_with_mpi(work) if config.mpi else run_with_processes(work, config.num_workers)
    if manifest is not None:
        print(describe(manifest))
        print(escape_controls(f"data in {config.output}"))


if __name__ == "__main__":
    run_cli(main, GOES_ON)
