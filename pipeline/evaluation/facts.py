"""Where a result comes from: weights, data and machine, as the report prints them."""

import hashlib
import platform
from datetime import datetime, timezone

import torch
import transformers

from pipeline.evaluation.placement import name_device
from pipeline.evaluation.records import EvaluationFolder
from pipeline.evaluation.suite import EvaluationInputs
from pipeline.model.adapter import ADAPTER_WEIGHTS, base_fingerprint
from pipeline.model.files import ModelFiles


def weights_fingerprint(files: ModelFiles) -> str:
    """Names the weights of an adapter (exact; its base is checked when it is loaded), of a published checkpoint, which
    fits any base of its shapes, or of a whole model."""
    if files.kind == "adapter":
        return hashlib.sha256((files.folder / ADAPTER_WEIGHTS).read_bytes()).hexdigest()
    fingerprint = base_fingerprint(str(files.folder))
    if files.base is None:
        return fingerprint
    return hashlib.sha256((fingerprint + base_fingerprint(files.base)).encode()).hexdigest()


def describe(
    inputs: EvaluationInputs, fingerprint: str, dtype: torch.dtype, num_ranks: int, folder: EvaluationFolder
) -> dict[str, dict[str, str]]:
    """Sections of name -> value."""
    files, window, dataset = inputs.files, inputs.window, inputs.dataset
    weights = {"model": f"{files.folder} ({files.kind})", "sha256": fingerprint}
    if files.base is not None:
        weights |= {"base": files.base, "base fingerprint": base_fingerprint(files.base)}
    weights |= {
        "sinks, window": f"{window.num_sink_tokens} + {window.window_size} = {window.lossless_budget} tokens",
        "base dtype": str(dtype).removeprefix("torch."),
    }
    data = {} if dataset is None else {
        "Data": {
            "folder": str(dataset.folder),
            "manifest sha256": dataset.fingerprint,
            "tokenizer": dataset.manifest.tokenizer_name,
            "tokenizer sha256": dataset.manifest.tokenizer_sha256,
        }
    }  # fmt: skip
    return {
        "Weights": weights,
        **data,
        "Machine": {
            "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
            "processes": f"{num_ranks}, with {torch.get_num_threads()} CPU threads each",
            "device": name_device(),
            "work": ", ".join(f"{name} {seconds:,.0f} s" for name, seconds in folder.seconds.items())
            + " (over all processes, earlier runs of this evaluation included)",
            "peak memory": f"{folder.peak_rss_gib:.2f} GiB a process",
            "software": f"Python {platform.python_version()}, torch {torch.__version__}, "
            f"transformers {transformers.__version__}",
        },
    }
