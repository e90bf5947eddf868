"""A teacher cache before any token is computed: what is asked for, checked against the files it names. No torch."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path

from pipeline.config import TeacherCacheConfig, require
from pipeline.config.teacher import DEFAULT_CHUNK_SIZE, DEFAULT_DTYPE, DEFAULT_K, DEFAULT_NUM_DRAWS, DEFAULT_SEED
from pipeline.data.dataset import PackedDataset
from pipeline.data.file_reading import reading
from pipeline.data.shard_format import PackedSample, ShardEntry
from pipeline.distributed.head_shares import HeadShares, share_heads
from pipeline.model.base_config import read_base_config
from pipeline.model.files import find_tokenizer_json
from pipeline.teacher.cache_claims import missing_shards
from pipeline.teacher.cache_format import TEACHER_NAME, PositionPolicy, TeacherInfo, check_same
from pipeline.teacher.cache_samples import MAX_UNPACKED_BYTES, member_bytes
from pipeline.teacher.fingerprint import teacher_fingerprint
from pipeline.teacher.signals import HiddenSpec, SampledSpec, SignalSpec, TopKSpec
from pipeline.tokenizer import fingerprint_of


@dataclass(frozen=True)
class CapturePlan:
    """A checked configuration with what was read to check it."""

    config: TeacherCacheConfig
    dataset: PackedDataset
    signal: SignalSpec
    positions: PositionPolicy

    @cached_property
    def teacher_sha256(self) -> str:
        """The teacher's fingerprint; the first time it reads all weights.

        Raises:
            UserError: they cannot be read.
        """
        return teacher_fingerprint(self.config.model)

    @property
    def chunk_size(self) -> int:
        """Positions whose logits exist at one time."""
        return self.config.chunk_size or DEFAULT_CHUNK_SIZE

    def describe_cache(self, teacher_sha256: str) -> TeacherInfo:
        """teacher.json."""
        model = Path(self.config.model)
        name = model.resolve().name if model.is_dir() else model.name
        return TeacherInfo(
            teacher_name=name,
            base_dtype=self.config.base_dtype,
            teacher_sha256=teacher_sha256,
            tokenizer_sha256=self.dataset.manifest.tokenizer_sha256,
            data_sha256=self.dataset.fingerprint,
            signal=self.signal,
            positions=self.positions,
            compression=self.config.compression,
            forward_chunk=self.config.forward_chunk,
            chunk_size=None if isinstance(self.signal, HiddenSpec) else self.chunk_size,
            sequence_parallel_size=self.config.sequence_parallel_size,
            later_mass_samples=self.config.later_mass_samples,
        )

    def samples_of(self, entry: ShardEntry) -> Iterator[PackedSample]:
        """The samples of one of the data's shards, in order.

        Raises:
            DataError: a sample cannot be read or is damaged.
        """
        first = self._first_sample[entry.name]
        return (self.dataset[index] for index in range(first, first + entry.num_samples))

    @cached_property
    def _first_sample(self) -> dict[str, int]:
        counts = [entry.num_samples for entry in self.dataset.manifest.shards]
        names = [entry.name for entry in self.dataset.manifest.shards]
        return dict(zip(names, accumulate(counts, initial=0), strict=False))  # the last sum is of no shard

    @property
    def missing(self) -> list[ShardEntry]:
        """The data's shards that --output does not have."""
        return missing_shards(self.config.output, self.dataset.manifest)


def plan_capture(config: TeacherCacheConfig) -> CapturePlan:
    """Checks the configuration against the files it names.

    Raises:
        UserError: one line that names the flag or file, what was found and what would work.
    """
    find_tokenizer_json(config.model)  # before what takes longer
    settings = read_base_config(config.model)
    share_teacher_heads(config)
    dataset = PackedDataset(config.data, config.data_cache, config.data_cache_bytes)
    require(len(dataset) > 0, f"--data {config.data} holds no samples")
    expected, found = dataset.manifest.tokenizer_sha256, fingerprint_of(config.model)
    require(
        expected == found,
        f"--data {config.data} was tokenised with {dataset.manifest.tokenizer_name} ({expected[:12]}), which is not "
        f"the tokenizer of --model {config.model} ({found[:12]}); prepare the data with --tokenizer {config.model}",
    )
    require(
        config.later_mass_samples <= len(dataset),
        f"--later_mass_samples {config.later_mass_samples}: --data {config.data} has {len(dataset)} samples; give at "
        f"most as many",
    )
    seq_len = dataset.manifest.seq_len
    require(
        config.min_budget + 2 <= seq_len,
        f"--min_budget {config.min_budget}: --data {config.data} has sequence length {seq_len}, so no position would "
        f"be left; give at most {seq_len - 2}",
    )
    policy = PositionPolicy("past_budget", config.min_budget) if config.min_budget else PositionPolicy("all")
    plan = CapturePlan(config, dataset, _choose_signal(config, settings), policy)
    largest = sum(member_bytes(plan.signal, seq_len).values())
    require(
        config.compression == "none" or largest <= MAX_UNPACKED_BYTES,
        f"--compression {config.compression}: a sample of {seq_len} positions takes {largest} bytes, and what is "
        f"compressed at most {MAX_UNPACKED_BYTES}; give --compression none or another --signal",
    )
    _check_output(plan)
    return plan


def share_teacher_heads(config: TeacherCacheConfig) -> HeadShares:
    """Which attention heads each rank of a sequence-parallel group takes.

    Raises:
        UserError: the model's heads do not allow --sequence_parallel_size.
    """
    settings = read_base_config(config.model)
    num_heads = settings["num_attention_heads"]
    return share_heads(num_heads, settings.get("num_key_value_heads") or num_heads, config.sequence_parallel_size)


def _check_output(plan: CapturePlan) -> None:
    """Refuses the cache of another teacher, of other data or settings; a dry run does not read the weights."""
    output = plan.config.output
    with reading(output):
        require(output.is_dir() or not output.exists(), f"--output {output} is a file; name a folder")
        is_begun = (output / TEACHER_NAME).is_file()
    if is_begun:
        found = TeacherInfo.load(output)
        teacher = found.teacher_sha256 if plan.config.dry_run else plan.teacher_sha256
        check_same(found, plan.describe_cache(teacher), f"--output {output}")


def _choose_signal(config: TeacherCacheConfig, settings: dict) -> SignalSpec:
    vocab_size = settings["vocab_size"]
    if config.signal == "hidden":
        return HiddenSpec(config.dtype or DEFAULT_DTYPE, settings["hidden_size"])
    if config.signal == "topk":
        k = config.k or DEFAULT_K
        require(k <= vocab_size, f"--k {k}: --model {config.model} has {vocab_size} tokens")
        return TopKSpec(k, vocab_size)
    return SampledSpec(config.num_draws or DEFAULT_NUM_DRAWS, config.seed or DEFAULT_SEED, vocab_size)
