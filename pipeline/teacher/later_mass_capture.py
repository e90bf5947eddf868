"""The offline job's later masses: a forward of each of some samples, in which each layer's attention is looked at."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from pipeline.attention.later_mass import later_mass
from pipeline.data.shard_format import DataError
from pipeline.folder_claim import Lock
from pipeline.teacher.cache_claims import claim
from pipeline.teacher.cache_later_masses import (
    LATER_MASSES_NAME,
    are_written,
    spread_samples,
    token_step,
    write_later_masses,
)
from pipeline.teacher.capture_plan import CapturePlan
from pipeline.teacher.teacher_model import Teacher


class MassRecorder:
    """What document_attention shows of a forward of one whole sample.

    Attributes:
        of_layers: float32 [Hkv, n, bins] of each layer with full attention, in their order.
    """

    def __init__(self) -> None:
        self.of_layers: list[Tensor] = []

    def record(self, query: Tensor, key: Tensor, documents: Sequence[tuple[int, int]], scale: float) -> None:
        """Of a layer's queries [1, Hq, T, D] and keys [1, Hkv, T, D] of documents [start, end)."""
        found = [later_mass(query[:, :, s:e], key[:, :, s:e], scale=scale).sums[0] for s, e in documents]
        bins = max(x.shape[2] for x in found)
        whole = torch.cat([F.pad(x, (0, bins - x.shape[2])) for x in found], 1)
        self.of_layers.append(whole[:, :: token_step(whole.shape[1])].cpu())


def capture_later_masses(plan: CapturePlan, teacher: Teacher) -> None:
    """Writes them where they are asked for and not there; waits for another process that does.

    Raises:
        DataError: a sample is damaged, or the teacher's attention of it is not finite.
        UserError: the model cannot be loaded.
        OSError: they cannot be written.
    """
    folder, count = plan.config.output, plan.config.later_mass_samples
    if not count or are_written(folder):
        return
    with claim(folder, LATER_MASSES_NAME, wait=True) as state:
        if state is Lock.TAKEN or are_written(folder):
            return
        if not teacher.is_loaded:
            teacher.load()
        masses = {}
        for number in tqdm(spread_samples(len(plan.dataset), count), desc="later masses", unit="sample", disable=None):
            recorder, sample = MassRecorder(), plan.dataset[number]
            teacher.show(sample, recorder)
            found = torch.stack(recorder.of_layers)
            if not found.isfinite().all():
                raise DataError(
                    f"--model {plan.config.model} at sample {sample.key}: its attention is not finite; try another "
                    f"--base_dtype"
                )
            masses[number] = found.numpy()
        write_later_masses(folder, plan.describe_cache(plan.teacher_sha256), masses)
