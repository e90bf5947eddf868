"""Settings of launchers/cache_teacher.py."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pipeline.config.parsing import require

DEFAULT_DTYPE, DEFAULT_K, DEFAULT_NUM_DRAWS, DEFAULT_SEED = "bfloat16", 50, 50, 0
# A constant, not a function of the machine: the bytes of a cache depend on it.
DEFAULT_CHUNK_SIZE = 256
_SIGNALS_OF_FLAG = {
    "dtype": ("hidden",),
    "k": ("topk",),
    "num_draws": ("sampled",),
    "seed": ("sampled",),
    "chunk_size": ("topk", "sampled"),
}


@dataclass
class TeacherCacheConfig:
    """Run the full-attention teacher once over packed data and keep what distillation needs of it.

    Any number of processes share the shards out among themselves, under deepspeed, torchrun, srun or mpiexec, or
    started one by one. The same command again does what is missing.
    """

    model: str
    """Teacher, which is the base that will be distilled: a local folder or a hub id."""
    data: str
    """Packed data written by launchers/prepare.py: a folder, or its URL (s3://, gs://, any that fsspec reads)."""
    output: Path
    """Cache folder to write or to go on with, on a file system."""
    signal: Literal["hidden", "topk", "sampled"]
    """`hidden`: final hidden states, exact. `topk`: the most probable tokens and the tail's mass. `sampled`: draws."""
    dtype: Literal["float32", "bfloat16", "float16", "int8"] | None = None
    """hidden: how a hidden state is stored; int8 has one scale a position. Default: bfloat16."""
    k: int | None = None
    """topk: tokens a position. Default: 50."""
    num_draws: int | None = None
    """sampled: draws a position. Default: 50."""
    seed: int | None = None
    """sampled: seeds the draws. Default: 0."""
    min_budget: int = 0
    """Leave out the first so many tokens of each document: the smallest lossless budget that training will draw.
    0: every position that can be supervised."""
    base_dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """dtype that the teacher computes in: --train.base_dtype of the training to come."""
    check_base: bool = True
    """Compute that AHN is exact on the base's family, on a small copy of it, and refuse it if not. Once: what passed is
    remembered in $AHN_CACHE_DIR (default: ~/.cache/ahn-pipeline)."""
    chunk_size: int | None = None
    """topk, sampled: positions whose logits exist at one time. Another one may change last digits. Default: 256."""
    forward_chunk: int | None = None
    """Tokens that go through the teacher at one time, a longer document against the keys and values of what came
    before. For samples whose activations do not fit in memory: those of a chunk (say 4096) remain, and only keys and
    values grow with the document. Another one may change last digits. Default: whole samples."""
    sequence_parallel_size: int = 1
    """Consecutive ranks of this job that compute each sample together (Ulysses), for samples that take one GPU too
    long. Must suit the teacher's heads. Another one may change last digits."""
    ds_config: Path | None = None
    """DeepSpeed JSON with ZeRO stage 3, for a teacher that does not fit on one GPU: its weights are partitioned over
    the ranks of this job, started by deepspeed or torchrun. Default: each process has the whole teacher."""
    compression: Literal["none", "zstd"] = "zstd"
    """`zstd`: lossless, 14 to 41 % fewer bytes. `none`: plain .npy files, and a --dry_run exact to the byte."""
    later_mass_samples: int = 0
    """Samples, spread over the data, of which the cache also has what later queries read of each token, by distance:
    scorers of retained tokens (--window.retained of train.py) are fitted to these then, for any window."""
    data_cache: Path | None = None
    """Local folder for shards of data behind a URL. Default: $AHN_DATA_CACHE, or ~/.cache/ahn-pipeline/shards."""
    data_cache_bytes: int = 100_000_000_000
    """Bound on that folder; the shards that were not read for the longest time make room."""
    dry_run: bool = False
    """Only say how many positions and bytes it would be; reads the data, not the model's weights."""
    local_rank: int = -1
    """Set by the deepspeed launcher."""

    def __post_init__(self) -> None:
        for name, signals in _SIGNALS_OF_FLAG.items():
            value = getattr(self, name)
            require(
                value is None or self.signal in signals,
                f"--{name} {value}: has no meaning for --signal {self.signal}, only for {' and '.join(signals)}",
            )
        least_values = {"k": 1, "num_draws": 1, "seed": 0, "chunk_size": 1, "forward_chunk": 1, "data_cache_bytes": 1,
                        "sequence_parallel_size": 1}  # fmt: skip
        for name, least in least_values.items():
            value = getattr(self, name)
            require(value is None or value >= least, f"--{name}: must be >= {least}, found {value}")
        for name in ("forward_chunk", "ds_config"):
            require(
                self.sequence_parallel_size == 1 or getattr(self, name) is None,
                f"--{name} {getattr(self, name)} does not go with --sequence_parallel_size "
                f"{self.sequence_parallel_size}, whose ranks have the whole teacher and a part of each sample; "
                f"give one of them",
            )
        require(self.later_mass_samples >= 0, f"--later_mass_samples: must be >= 0, found {self.later_mass_samples}")
        for name, alone in (("forward_chunk", None), ("ds_config", None), ("sequence_parallel_size", 1)):
            require(
                self.later_mass_samples == 0 or getattr(self, name) == alone,
                f"--later_mass_samples {self.later_mass_samples} does not go with --{name} {getattr(self, name)}: it "
                f"needs a sample's queries and keys in one place; leave one of them out (train.py can do without: it "
                f"then looks at the base's attention itself)",
            )
        require(self.min_budget >= 0, f"--min_budget: must be >= 0, found {self.min_budget}")
        # A Path has one slash of a URL's two.
        require(":/" not in str(self.output), f"--output {self.output}: a cache is written to a file system, not a URL")
