"""DeepSpeed's settings for a teacher that is only run: where its weights lie, and nothing else. No torch."""

from pathlib import Path
from typing import Any

from pipeline.config import require
from pipeline.config.deepspeed_json import read_deepspeed_json
from pipeline.flags import suggestion

_MEANINGFUL = ("zero_optimization", "comms_logger", "steps_per_print", "wall_clock_breakdown")
_ROUNDING = ("zero_quantized_weights", "zero_quantized_nontrainable_weights")


def load_partition_config(path: Path) -> dict[str, Any]:
    """Reads --ds_config for the teacher job.

    Raises:
        ConfigError: the file is missing, is no JSON object, is not for ZeRO stage 3, or sets what has no meaning for
            a model that is not trained.
    """
    user = read_deepspeed_json(path)
    foreign = [key for key in user if key not in _MEANINGFUL]
    require(
        not foreign,
        f"--ds_config {path} sets {', '.join(foreign)}, without meaning for a teacher, which is only run (in "
        f"--base_dtype){suggestion(foreign[0], _MEANINGFUL) if foreign else ''}; give a file with zero_optimization "
        f"alone, as ds_configs/zero3.json",
    )
    zero = user.get("zero_optimization")
    zero = zero if isinstance(zero, dict) else {}
    require(
        zero.get("stage") == 3,
        f"--ds_config {path} has ZeRO stage {zero.get('stage')}, only stage 3 partitions weights; set it, or leave "
        f"--ds_config out if the teacher fits on one GPU",
    )
    rounding = [key for key in _ROUNDING if zero.get(key)]
    require(
        not rounding,
        f"--ds_config {path} sets {', '.join(rounding)}, which rounds the teacher's weights; remove it",
    )
    # Another product, of other bits, which saves memory in a backward pass only.
    zero = zero | {"memory_efficient_linear": False}
    return user | {"zero_optimization": zero, "train_micro_batch_size_per_gpu": 1}
