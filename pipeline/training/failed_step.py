"""What is left of a step whose loss or gradient is not finite: failed_step.json, and the error to end with."""

import json
from collections.abc import Sequence
from dataclasses import asdict

from pipeline.data.collate import Batch
from pipeline.distributed.groups import Ranks, gather_objects
from pipeline.training.run_folder import RunFolder, write_atomically
from pipeline.training.step import NonFiniteError


def report_failed_step(
    error: NonFiniteError, step: int, batches: Sequence[Batch], folder: RunFolder, ranks: Ranks
) -> NonFiniteError:
    """Writes which samples the step held, and names them. Collective.

    Args:
        step: that failed.
        batches: this rank's micro-batches in it.

    Returns:
        `error` with step, samples and folders in its message.
    """
    path = folder.root / "failed_step.json"
    samples = [
        {
            "key": d.sample.key,
            "global_index": d.global_index,
            "window": d.window and asdict(d.window),
            "from_teacher_cache": batch.signal is not None,
        }
        for batch in batches
        for d in batch.samples
    ]
    by_rank = gather_objects(samples, ranks)
    if ranks.is_main:
        report = {"step": step, "error": str(error), "failed_ranks": error.ranks, "samples_by_rank": by_rank}
        write_atomically(path, json.dumps(report, indent=1).encode())
    suspects = [sample for rank in error.ranks for sample in by_rank[rank]]
    keys = ", ".join([sample["key"] for sample in suspects][:8]) + (", ..." if len(suspects) > 8 else "")
    num_cached = sum(sample["from_teacher_cache"] for sample in suspects)
    cached = f"{num_cached} of {len(suspects)} with signals of the teacher cache; " if num_cached else ""
    return NonFiniteError(
        f"step {step}: {error}; samples {keys} ({cached}all in {path}); "
        f"nothing was updated, and {folder.checkpoints} holds the state before the step",
        error.ranks,
    )
