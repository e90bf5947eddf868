"""The user's DeepSpeed JSON plus the fields that our own settings own. No torch.

The recipe owns batch, accumulation, clipping, optimizer and dtype; the JSON owns ZeRO, offload and communication.
Where both speak, they must say the same.
"""

from pathlib import Path
from typing import Any

from pipeline.config import TrainConfig, require
from pipeline.config.deepspeed_json import read_deepspeed_json

# DeepSpeed's mixed-precision sections cast every parameter, A_log and dt_bias included (stages 1 to 3). The base
# has its own dtype (--train.base_dtype) and the AHN stays float32 instead.
PRECISION_SECTIONS = ("bf16", "bfloat16", "fp16", "amp", "torch_autocast")


def load_deepspeed_config(path: Path, train: TrainConfig, world_size: int, dp_size: int) -> dict[str, Any]:
    """Reads the JSON and adds batch, accumulation and clipping.

    DeepSpeed takes all ranks for data parallel; those of a sequence-parallel group have the same samples.

    Args:
        dp_size: groups of ranks with different samples.

    Raises:
        ConfigError: the file is missing, is no JSON object, or contradicts a flag; names the key and the flag.
    """
    user = read_deepspeed_json(path)
    owned = {
        "train_batch_size": ("--train.global_batch_size", train.global_batch_size),
        "train_micro_batch_size_per_gpu": ("--train.micro_batch_size", train.micro_batch_size),
        "gradient_accumulation_steps": (
            "--train.global_batch_size / (--train.micro_batch_size x ranks)",
            train.grad_accum_steps(dp_size),
        ),
        "gradient_clipping": ("--train.clip_grad_norm", train.clip_grad_norm),
    }
    for key, (flag, value) in owned.items():
        require(
            user.get(key, "auto") in ("auto", value),
            f'--ds_config {path} sets "{key}": {user.get(key)}, but {flag} says {value}; remove the key',
        )
    for key in ("optimizer", "scheduler"):
        require(
            key not in user,
            f'--ds_config {path} sets "{key}", which --train.learning_rate and the other --train flags own; remove it',
        )
    for key in PRECISION_SECTIONS:
        require(
            not _enabled(user.get(key)),
            f'--ds_config {path} enables "{key}", which would cast the AHN parameters too; remove it and set the '
            f"base's dtype with --train.base_dtype (now {train.base_dtype})",
        )
    defaults = {"steps_per_print": None, "zero_force_ds_cpu_optimizer": False}
    sizes = {"train_batch_size": train.global_batch_size * world_size // dp_size}
    return defaults | user | {key: value for key, (_, value) in owned.items()} | sizes


def _enabled(section: Any) -> bool:
    return section.get("enabled", False) not in (False, "auto") if isinstance(section, dict) else bool(section)
