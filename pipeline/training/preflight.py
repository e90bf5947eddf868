"""Everything that can be refused before torch is imported and the model loaded. Seconds, on every rank alike."""

import os
from dataclasses import dataclass
from typing import Any

from pipeline.byte_counts import format_bytes
from pipeline.config import TrainConfig, TrainRunConfig, require
from pipeline.data.loader import PackedDataset, SampleStream, Shuffle
from pipeline.distributed.head_shares import HeadShares, share_heads
from pipeline.metrics.wandb_run import check_wandb
from pipeline.model.base_config import read_base_config
from pipeline.model.files import find_tokenizer_json
from pipeline.tokenizer import fingerprint_of
from pipeline.training.cached_teacher import CachedTeacher, open_cached_teacher
from pipeline.training.deepspeed_config import load_deepspeed_config
from pipeline.training.run_folder import check_run_folder
from pipeline.training.schedules import SMALLEST_BUDGET, window_candidates


@dataclass(frozen=True)
class Plan:
    """A checked configuration with what was read to check it. `heads`: of each rank inside attention; None in halo
    mode."""

    config: TrainRunConfig
    stream: SampleStream
    deepspeed: dict[str, Any]
    heads: HeadShares | None
    teacher: CachedTeacher | None


def preflight(config: TrainRunConfig) -> Plan:
    """Checks the configuration against the files it names.

    Raises:
        UserError: one line that names the flag or file, what was found and what would work.
    """
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    dp_size = data_parallel_size(config, world_size)
    check_sequence_parallel_mode(config)
    check_wandb(config.train.wandb)
    deepspeed = load_deepspeed_config(config.ds_config, config.train, world_size, dp_size)
    find_tokenizer_json(config.model)  # before what takes longer
    heads = share_model_heads(config)
    dataset = PackedDataset(config.data, config.data_cache, config.data_cache_bytes)
    require(len(dataset) > 0, f"--data {config.data} holds no samples")
    stream = open_stream(dataset, config.train)
    check_cache(config, stream)
    expected, found = dataset.manifest.tokenizer_sha256, fingerprint_of(config.model)
    require(
        expected == found,
        f"--data {config.data} was tokenised with {dataset.manifest.tokenizer_name} ({expected[:12]}), which is not "
        f"the tokenizer of --model {config.model} ({found[:12]}); prepare the data with --tokenizer {config.model}",
    )
    check_sequence_length(config, dataset.manifest.seq_len)
    check_run_folder(config, dataset.fingerprint)
    return Plan(config, stream, deepspeed, heads, open_cached_teacher(config, stream))


def data_parallel_size(config: TrainRunConfig, world_size: int) -> int:
    """Groups of ranks that hold different samples.

    Raises:
        UserError: the ranks do not make whole groups.
    """
    size = config.sequence_parallel_size
    require(
        world_size % size == 0,
        f"--sequence_parallel_size {size} does not divide the {world_size} ranks of this job",
    )
    return world_size // size


def check_sequence_parallel_mode(config: TrainRunConfig) -> None:
    """Refuses the halo mode where a teacher would run, whose full attention needs whole rows.

    Raises:
        UserError: names the flag that asks for one.
    """
    if config.sequence_parallel_size == 1 or config.sequence_parallel_mode != "halo" or config.train.loss == "ce":
        return
    online = "no --teacher_cache" if config.teacher_cache is None else "--teacher_fallback online"
    require(
        config.teacher_cache is not None and config.teacher_fallback == "error",
        f"--sequence_parallel_mode halo cannot run the teacher in training, as {online} asks for; give a "
        f"--teacher_cache with every shard, --train.loss ce, or --sequence_parallel_mode ulysses",
    )


def share_model_heads(config: TrainRunConfig) -> HeadShares | None:
    """Which attention heads each rank of a sequence-parallel group takes; None where each has all of them.

    Raises:
        UserError: the model's heads do not allow --sequence_parallel_size.
    """
    if config.sequence_parallel_mode == "halo":
        return None
    settings = read_base_config(config.model)
    num_heads = settings["num_attention_heads"]
    return share_heads(num_heads, settings.get("num_key_value_heads") or num_heads, config.sequence_parallel_size)


def open_stream(dataset: PackedDataset, train: TrainConfig) -> SampleStream:
    """The samples in the order that the settings ask for.

    Raises:
        DataError: the mixture does not fit the data.
    """
    return SampleStream(dataset, train.seed, train.mixture, Shuffle(train.shuffle, train.shuffle_block_shards))


def check_cache(config: TrainRunConfig, stream: SampleStream) -> None:
    """Refuses a cache in which shards of remote data would be fetched over and over.

    Raises:
        UserError: names the flag and the bytes that are in use at one time.
    """
    needed = stream.working_set_bytes
    require(
        not stream.dataset.is_remote or config.data_cache_bytes >= needed,
        f"--data_cache_bytes {config.data_cache_bytes} is less than the {format_bytes(needed)} of --data {config.data} "
        f"in use at one time; raise it, or choose --train.shuffle block and a lower --train.shuffle_block_shards",
    )


def check_sequence_length(config: TrainRunConfig, seq_len: int) -> None:
    """Refuses data in which no document can be long enough for anything to be supervised.

    Raises:
        UserError: names the data, its sequence length and the smallest lossless budget.
    """
    # A document of W + 1 tokens evicts one token, but its only memory reader has no target.
    window = config.window
    retained = window.least_held
    fitting = [budget for budget, _ in window_candidates(seq_len, window) if budget + retained + 2 <= seq_len]
    smallest = (SMALLEST_BUDGET if window.budgets is None else min(window.budgets)) + retained
    require(
        bool(fitting),
        f"--data {config.data} has sequence length {seq_len}, below the smallest lossless budget {smallest} + 2 "
        f"tokens, so nothing would ever be supervised; prepare longer samples or lower --window.budgets"
        + (f" or --window.retained {window.retained}" if retained else ""),
    )
