"""What an exported adapter says about itself."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipeline.config import TrainRunConfig, to_plain
from pipeline.training.run_folder import TrainState


def describe_adapter(config: TrainRunConfig, base_fingerprint: str, state: TrainState) -> dict[str, Any]:
    """The info of pipeline/model/adapter.py's `save_adapter`: the base, the memory, and how it was trained so far."""
    plain, model, retained = to_plain(config), Path(config.model), {}
    if config.window.has_scorer:
        number = config.window.num_inference_retained
        retained = {
            "num_retained_tokens": number,
            "decision_interval": config.window.interval(number),
            "has_scorer": True,
        }
    return {
        "base_model": str(model.resolve()) if model.is_dir() else config.model,
        "base_fingerprint": base_fingerprint,
        "memory": plain["memory"],
        "num_sink_tokens": config.window.inference_sinks,
        "window_size": config.window.inference_window,
        **retained,
        "training": asdict(state) | {"window": plain["window"], "train": plain["train"]},
    }
