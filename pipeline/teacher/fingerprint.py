"""Names a teacher, so that its signals are never taken for those of another one."""

import hashlib
import json

from pipeline.model.adapter import base_fingerprint
from pipeline.model.base_config import read_base_config

# Of config.json: what does not change the forward, or is set by our own flags.
_BOOKKEEPING = ("_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version", "use_cache")


def teacher_fingerprint(model: str) -> str:
    """Names a teacher: sha256 (hex) over its weights (`base_fingerprint`) and its config.json.

    The config counts because the same weights with other RoPE settings are another teacher.

    Raises:
        UserError: there is no such model, or not a base.
    """
    config = {name: value for name, value in read_base_config(model).items() if name not in _BOOKKEEPING}
    parts = {"weights": base_fingerprint(model), "config": config}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
