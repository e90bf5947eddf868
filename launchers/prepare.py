"""Tokenises and packs documents: `prepare.py --inputs docs/ --tokenizer MODEL --output DATA`."""

import os

from pipeline.config import PrepareConfig, parse_cli
from pipeline.errors import run_cli


def main() -> None:
    """Makes the packed folder, then prints what is in it and what was left out."""
    config = parse_cli(PrepareConfig)
    # One thread a process: --num_workers alone decides how many cores are used.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from data_prep.inputs import ReadingSpec
    from data_prep.manifest import describe
    from data_prep.prepare import PackingSpec, prepare

    manifest = prepare(
        inputs=config.inputs,
        tokenizer=config.tokenizer,
        output=config.output,
        reading=ReadingSpec(
            text_field=config.text_field,
            extensions=tuple(config.extensions),
            exclude=tuple(config.exclude),
            min_bytes=config.min_bytes,
        ),
        packing=PackingSpec(
            seq_len=config.seq_len,
            method=config.packing,
            append_eos=config.append_eos,
            unit_bytes=config.unit_bytes,
            shard_bytes=config.shard_bytes,
        ),
        num_workers=config.num_workers,
    )
    print(describe(manifest))
    print(f"data in {config.output}")


if __name__ == "__main__":
    run_cli(main)
