"""Settings of launchers/train.py."""

import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pipeline.config.memory import MemoryConfig, WindowConfig
from pipeline.config.parsing import require


@dataclass
class TrainConfig:
    """Optimisation. These fields own batch, accumulation, learning rate, clipping and dtype; the DeepSpeed JSON
    owns ZeRO, offload and communication."""

    max_steps: int = 740
    """Optimizer steps."""
    global_batch_size: int = 128
    """Samples per optimizer step over all ranks."""
    micro_batch_size: int = 1
    """Samples per forward on one rank; accumulation = global / (micro x ranks)."""
    learning_rate: float = 1e-4
    """Peak learning rate, after warm-up."""
    gate_learning_rate: float | None = None
    """That of what makes the memories' gates: decays, write strengths, output gates. Default: --train.learning_rate."""
    warmup_ratio: float = 0.1
    """Share of max_steps spent on linear warm-up; cosine to zero follows."""
    weight_decay: float = 0.1
    """AdamW weight decay; never on A_log, dt_bias and norms."""
    gate_weight_decay: float | None = None
    """That of the projections to the gates. Default: --train.weight_decay."""
    adam_betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's decay rates of the first and second moment."""
    clip_grad_norm: float = 1.0
    """Global gradient norm above which gradients are scaled down."""
    loss: Literal["kl", "ce", "retention"] = "kl"
    """`kl`: forward KL to the full-attention teacher. `ce`: next-token cross entropy. `retention`: no steps, only the
    scorers of --window.retained are fitted, as they are before the first step of the others."""
    scorer_samples: int = 64
    """Samples, the first of the run, whose later attention the scorers of --window.retained are fitted to."""
    loss_normalisation: Literal["tokens", "samples"] = "tokens"
    """Mean over all supervised tokens of a step, or mean of per-sample means (as published)."""
    topk_tail: Literal["bucket", "renormalise"] = "bucket"
    """With a topk teacher cache: the tokens outside the K as one, or the K alone rescaled (biased)."""
    loss_chunk_size: int = 512
    """Positions whose logits exist at one time."""
    base_dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """dtype of the frozen base. AHN parameters are always float32."""
    activation_checkpointing: bool = True
    """Recompute decoder layers in the backward pass."""
    seed: int = 0
    """Seeds data order, window draws and AHN initialisation."""
    mixture: dict[str, float] | None = None
    """Share of each source in an epoch, as {books: 0.7, code: 0.3}. Default: the weights in the data's manifest."""
    shuffle: Literal["full", "block"] = "full"
    """`full`: over all samples. `block`: shards, and samples within groups of shards: for data behind a URL."""
    shuffle_block_shards: int = 16
    """Shards in a group of block shuffle."""
    loader_workers: int = 2
    """Threads on each rank that read samples ahead. The order does not depend on it."""
    save_every: int = 100
    """Steps between checkpoints; one more is written at the end and on SIGTERM or SIGUSR1."""
    keep_checkpoints: int = 2
    """Newest checkpoints that stay on disk."""
    async_save: bool = False
    """Write checkpoints in the background while training goes on, from a copy in CPU memory."""
    step_timeout_s: float = 1800.0
    """Seconds after which a step or a save that is not done is taken for hung: stacks are written, the run ends."""
    peak_tflops: float | None = None
    """What a rank's device can do at most, for perf/mfu. Default: known for common GPUs and a bfloat16 base."""
    wandb: str | None = None
    """Project of Weights & Biases that the metrics are sent to, too."""

    def __post_init__(self) -> None:
        for name in (
            "max_steps",
            "global_batch_size",
            "micro_batch_size",
            "scorer_samples",
            "loss_chunk_size",
            "shuffle_block_shards",
            "loader_workers",
            "save_every",
            "keep_checkpoints",
        ):
            require(getattr(self, name) >= 1, f"--train.{name}: must be >= 1, found {getattr(self, name)}")
        require(self.learning_rate > 0, f"--train.learning_rate: must be > 0, found {self.learning_rate}")
        rate, decay = self.gate_learning_rate, self.gate_weight_decay
        require(rate is None or rate > 0, f"--train.gate_learning_rate: must be > 0, found {rate}")
        require(decay is None or decay >= 0, f"--train.gate_weight_decay: must be >= 0, found {decay}")
        require(self.clip_grad_norm > 0, f"--train.clip_grad_norm: must be > 0, found {self.clip_grad_norm}")
        require(
            self.peak_tflops is None or self.peak_tflops > 0,
            f"--train.peak_tflops: must be > 0, found {self.peak_tflops}",
        )
        require(self.step_timeout_s > 0, f"--train.step_timeout_s: must be > 0, found {self.step_timeout_s}")
        require(self.weight_decay >= 0, f"--train.weight_decay: must be >= 0, found {self.weight_decay}")
        require(self.mixture != {}, "--train.mixture: names no source; leave it out to use the data's own weights")
        for name, weight in (self.mixture or {}).items():
            require(0 < weight < math.inf, f"--train.mixture: {name} must be finite and > 0, found {weight}")
        require(0 <= self.warmup_ratio < 1, f"--train.warmup_ratio: must be in [0, 1), found {self.warmup_ratio}")

    def grad_accum_steps(self, dp_size: int) -> int:
        """Micro-batches per optimizer step and rank.

        Raises:
            ConfigError: the global batch does not divide.
        """
        per_pass = self.micro_batch_size * dp_size
        require(
            self.global_batch_size % per_pass == 0,
            f"--train.global_batch_size {self.global_batch_size} is not a multiple of --train.micro_batch_size "
            f"{self.micro_batch_size} x {dp_size} data-parallel ranks; nearest that is: "
            f"{max(1, self.global_batch_size // per_pass) * per_pass}",
        )
        return self.global_batch_size // per_pass


@dataclass
class TrainRunConfig:
    """Distil an AHN into a frozen base, under deepspeed, torchrun, mpiexec or srun, or in one process."""

    model: str
    """Base model: a local folder or a hub id."""
    data: str
    """Packed data written by launchers/prepare.py: a folder, or its URL (s3://, gs://, any that fsspec reads)."""
    output: Path
    """Run folder: config.yaml, metrics.jsonl, checkpoints/, adapter/, report.html."""
    ds_config: Path
    """DeepSpeed JSON (ZeRO stage, offload, communication), e.g. ds_configs/zero2.json."""
    teacher_cache: Path | None = None
    """Signals written by launchers/cache_teacher.py for --data. Default: the teacher runs in every step."""
    teacher_fallback: Literal["error", "online"] = "error"
    """What samples do whose shard the cache does not have: `online` runs the teacher for them."""
    check_base: bool = True
    """Compute that AHN is exact on the base's family, on a small copy of it, and refuse it if not. Once: what passed is
    remembered in $AHN_CACHE_DIR (default: ~/.cache/ahn-pipeline)."""
    sequence_parallel_size: int = 1
    """Ranks that hold each sample together."""
    sequence_parallel_mode: Literal["ulysses", "halo"] = "ulysses"
    """Inside attention a rank has, `ulysses`: all tokens of some heads; `halo`: its tokens and those that its window
    reaches, all heads. `halo` sends the same however long a sample is; it needs --teacher_cache or --train.loss ce."""
    data_cache: Path | None = None
    """Local folder for shards of data behind a URL. Default: $AHN_DATA_CACHE, or ~/.cache/ahn-pipeline/shards."""
    data_cache_bytes: int = 100_000_000_000
    """Bound on that folder; the shards that were not read for the longest time make room."""
    resume: Literal["auto", "never"] = "auto"
    """`auto`: go on from the newest checkpoint in --output if there is one. `never`: refuse a used folder."""
    profile: str | None = None
    """Steps to trace with torch's profiler, as 5 or 5-8, into profile/rank-R.json of the run folder."""
    local_rank: int = -1
    """Set by the deepspeed launcher."""
    memory: MemoryConfig = field(default_factory=MemoryConfig)
    window: WindowConfig = field(default_factory=WindowConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    def __post_init__(self) -> None:
        require(
            self.sequence_parallel_size >= 1,
            f"--sequence_parallel_size: must be >= 1, found {self.sequence_parallel_size}",
        )
        require(self.data_cache_bytes >= 1, f"--data_cache_bytes: must be >= 1, found {self.data_cache_bytes}")
        require(
            self.profile is None or (re.fullmatch(r"\d+(-\d+)?", self.profile) and len(self.profile_steps) > 0),
            f"--profile: needs a step or a range of steps, as 5 or 5-8, found {self.profile}",
        )
        cache = self.teacher_cache
        # A Path has one slash of a URL's two.
        require(
            cache is None or ":/" not in str(cache),
            f"--teacher_cache {cache}: a teacher cache is read from a file system, not from a URL; copy it there",
        )
        require(
            cache is not None or self.teacher_fallback == "error",
            f"--teacher_fallback {self.teacher_fallback}: goes with --teacher_cache, which is not given",
        )
        require(
            cache is None or self.train.loss == "kl",
            f"--teacher_cache {cache}: --train.loss {self.train.loss} needs no teacher; leave one out",
        )
        require(
            self.train.loss != "retention" or self.window.has_scorer,
            f"--train.loss retention fits what chooses retained tokens; say how many: --window.retained, found "
            f"{self.window.retained}",
        )
        require(
            not self.window.has_scorer or self.sequence_parallel_size == 1 or self.sequence_parallel_mode != "halo",
            f"--sequence_parallel_mode halo: no rank has all the tokens that --window.retained "
            f"{self.window.retained} keeps; use --sequence_parallel_mode ulysses",
        )

    @property
    def profile_steps(self) -> range:
        """Steps of --profile, counted from 1."""
        if self.profile is None:
            return range(0)
        first, _, last = self.profile.partition("-")
        return range(int(first), int(last or first) + 1)
