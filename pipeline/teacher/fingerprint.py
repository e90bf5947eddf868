"""Names a teacher, so that its signals are never taken for those of another one. No torch."""

import hashlib
import json

from pipeline.errors import UserError
from pipeline.model.base_config import read_base_config
from pipeline.model.files import find_weights

# Of config.json: what does not change the forward, or is set by our own flags.
_BOOKKEEPING = ("_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version", "use_cache")


def teacher_fingerprint(model: str) -> str:
    """Names a teacher: sha256 (hex) over all bytes of its weight files, by name, and its config.json.

    Reads the weights whole: about a second for 1 or 2 GB, so once a process. The config counts because the same weights
    with other RoPE settings are another teacher.

    Raises:
        UserError: there is no such model, or not a base, or its files cannot be read.
    """
    config = {name: value for name, value in read_base_config(model).items() if name not in _BOOKKEEPING}
    weights = []
    for path in find_weights(model):
        try:
            with open(path, "rb") as file:
                weights.append(hashlib.file_digest(file, "sha256").hexdigest())
        except OSError as error:
            raise UserError(f"--model {model}: {path} cannot be read: {error.strerror}") from error
    return hashlib.sha256(json.dumps({"weights": weights, "config": config}, sort_keys=True).encode()).hexdigest()
