"""Writes an adapter with its base as one folder that AutoModelForCausalLM loads after `import pipeline`.

python launchers/merge_adapter.py --adapter RUN/adapter --output MERGED
python launchers/merge_adapter.py --adapter RUN/adapter --output PUBLISHED --layout published  # memories alone
"""

from pipeline.config import MergeConfig, parse_cli
from pipeline.errors import run_cli
from pipeline.model.files import fetch_model


def main() -> None:
    config = parse_cli(MergeConfig)
    adapter = fetch_model(str(config.adapter), "--adapter")
    if config.layout == "published":
        from pipeline.model.export import export_published

        export_published(adapter, config.output, base=config.base)
    else:
        import torch

        from pipeline.model.export import merge_adapter

        dtype = None if config.dtype == "auto" else getattr(torch, config.dtype)
        merge_adapter(adapter, config.output, dtype=dtype, base=config.base, check=config.check_base)
    print(config.output)


if __name__ == "__main__":
    run_cli(main, "interrupted; nothing was written")
