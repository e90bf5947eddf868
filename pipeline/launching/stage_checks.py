"""What can be said of cache and training before they are submitted: their own preflight, and the job."""

from collections.abc import Mapping
from pathlib import Path

from pipeline.byte_counts import format_bytes
from pipeline.config import Resources, TeacherCacheConfig, TrainRunConfig, WindowConfig, require
from pipeline.data.storage import is_url
from pipeline.launching.checks import DataFacts, Experiment, check_tokenizer, check_weights
from pipeline.launching.findings import Findings
from pipeline.launching.gpu_memory import GIB, estimate_gpu_memory
from pipeline.launching.stages import Stage
from pipeline.metrics.architecture import load_architecture
from pipeline.model.base_config import read_base_config
from pipeline.model.files import find_tokenizer_json
from pipeline.teacher.capture_plan import plan_capture
from pipeline.teacher.capture_size import free_bytes, most_bytes
from pipeline.teacher.partition_config import load_partition_config
from pipeline.teacher.signals import SampledSpec
from pipeline.training.cached_teacher import open_cached_teacher
from pipeline.training.deepspeed_config import load_deepspeed_config, read_deepspeed_json
from pipeline.training.preflight import (
    check_sequence_length,
    check_sequence_parallel_mode,
    data_parallel_size,
    open_stream,
    share_model_heads,
)
from pipeline.training.run_folder import check_run_folder
from pipeline.training.schedules import SMALLEST_BUDGET, window_candidates


def check_finished(finished: Mapping[str, Stage], findings: Findings) -> None:
    """Whether the cache that is there is the one that the experiment asks for."""
    if "cache" in finished:
        with findings.of("cache"):
            plan_capture(finished["cache"].config)


def check_cache_stage(experiment: Experiment) -> None:
    """The teacher job: model, data, room on the disk."""
    stage, findings = experiment.stages.get("cache"), experiment.findings
    if stage is None:
        return
    config: TeacherCacheConfig = stage.config
    with findings.of("cache"):
        if config.ds_config is not None:
            load_partition_config(config.ds_config)
    with findings.of("cache"):
        check_weights(config.model, experiment.config.site.environment)
    with findings.of("cache"):
        data = experiment.find_data(config.data, config.data_cache, config.data_cache_bytes)
        if data.dataset is not None:
            _check_room(experiment, config)
            return
        read_base_config(config.model)
        check_tokenizer(data, config.data, config.model)
        require(
            config.min_budget + 2 <= data.seq_len,
            f"--min_budget {config.min_budget}: the data will have sequence length {data.seq_len}, so no position "
            f"would be left; give at most {data.seq_len - 2}",
        )


def _check_room(experiment: Experiment, config: TeacherCacheConfig) -> None:
    plan = plan_capture(config)
    most, free = most_bytes(plan, plan.missing), free_bytes(config.output)
    if most <= free:
        return
    message = (
        f"--output {config.output}: {format_bytes(free)} are free where {len(plan.missing)} shards take up to "
        f"{format_bytes(most)}"
    )
    # A bound that is seldom reached; of the rest, what the last tokens of documents leave out is little.
    is_loose = isinstance(plan.signal, SampledSpec) or config.compression != "none" or config.min_budget > 0
    if is_loose:
        experiment.findings.warn("cache", f"{message}; cache_teacher.py --dry_run counts them")
    require(is_loose, f"{message}; make room, or choose another --signal, --dtype, --k or --min_budget")


def check_training(experiment: Experiment) -> None:
    """The training: batch and heads on so many ranks, DeepSpeed's settings, model, data, windows, GPU memory."""
    stage, findings = experiment.stages.get("train"), experiment.findings
    if stage is None:
        return
    config: TrainRunConfig = stage.config
    resources = experiment.config.site.of_stage("train")
    ranks = resources.num_processes
    with findings.of("train"):
        dp_size = data_parallel_size(config, ranks)
        with findings.of("train"):
            config.train.grad_accum_steps(dp_size)
        load_deepspeed_config(config.ds_config, config.train, ranks, dp_size)
    with findings.of("train"):
        check_sequence_parallel_mode(config)
    with findings.of("train"):
        share_model_heads(config)
    with findings.of("train"):
        check_weights(config.model, experiment.config.site.environment)
    with findings.of("train"):
        data = experiment.find_data(config.data, config.data_cache, config.data_cache_bytes)
        with findings.of("train"):
            check_tokenizer(data, config.data, config.model)
        with findings.of("train"):
            check_sequence_length(config, data.seq_len)
        with findings.of("train"):
            _check_gpu_memory(experiment, config, resources, data.seq_len)
        _warn_of_numbers_never_drawn(findings, config.window, data.seq_len)
        _check_teacher(experiment, config, data)


def _warn_of_numbers_never_drawn(findings: Findings, window: WindowConfig, seq_len: int) -> None:
    """Of --window.retained, where every window that may be drawn holds whole samples with so many retained."""
    budgets = [budget for budget, _ in window_candidates(seq_len, window)]
    for number in window.retained:
        held = number + window.interval(number) - 1
        if number and budgets and min(budgets) + held >= seq_len:
            findings.warn(
                "train",
                f"--window.retained {number} is never drawn: with the smallest window, S + R = {min(budgets)}, "
                f"W = {min(budgets) + held} tokens are kept, and samples have {seq_len}; leave it out, or give "
                f"smaller --window.budgets",
            )


def _check_gpu_memory(experiment: Experiment, config: TrainRunConfig, resources: Resources, seq_len: int) -> None:
    limit = experiment.config.gpu_memory
    if limit is None or not resources.gpus_per_node:
        return
    architecture = load_architecture(str(find_tokenizer_json(config.model).parent))
    is_tied = read_base_config(config.model).get("tie_word_embeddings", False)
    zero = read_deepspeed_json(config.ds_config).get("zero_optimization", {})
    memory = estimate_gpu_memory(config, architecture, is_tied, zero, resources.num_processes, seq_len)
    fewer = ", fewer --window.retained" if memory.retained else ""
    require(
        memory.total <= limit * GIB,
        f"--gpu_memory {limit:g}: each GPU would need about {memory}; try a lower --train.micro_batch_size, "
        f"--train.activation_checkpointing true, --sequence_parallel_size, --teacher_cache{fewer} or "
        f"ds_configs/zero3.json",
    )


def _check_teacher(experiment: Experiment, config: TrainRunConfig, data: DataFacts) -> None:
    """The run folder, if the data is there, and the teacher's cache, there or to come."""
    cache_stage = experiment.stages.get("cache")
    cache: TeacherCacheConfig | None = None if cache_stage is None else cache_stage.config
    is_planned = cache is not None and config.teacher_cache is not None
    is_planned = is_planned and config.teacher_cache.absolute() == cache.output.absolute()
    if data.dataset is not None:
        stream = open_stream(data.dataset, config.train)
        require(
            not is_url(config.data) or config.data_cache_bytes >= stream.working_set_bytes,
            f"--data_cache_bytes {config.data_cache_bytes} is less than the "
            f"{format_bytes(stream.working_set_bytes)} of --data {config.data} in use at one time; raise it, or choose "
            f"--train.shuffle block",
        )
        check_run_folder(config, data.dataset.fingerprint)
        if not is_planned:
            open_cached_teacher(config, stream)
    elif not is_planned:
        require(
            config.teacher_cache is None,
            f"--teacher_cache {config.teacher_cache} cannot be of data that prepare is going to write; leave it out, "
            f"or have the cache made too (cache: ...)",
        )
    if is_planned:
        _check_planned_cache(experiment, config, cache)


def _check_planned_cache(experiment: Experiment, config: TrainRunConfig, cache: TeacherCacheConfig) -> None:
    budgets, held = config.window.budgets, config.window.least_held
    smallest = (SMALLEST_BUDGET if budgets is None else min(budgets)) + held
    drawn = "by default" if budgets is None else f"{budgets}"
    drawn += f" with --window.retained {config.window.retained}" if held else ""
    with experiment.findings.of("train"):
        require(
            smallest >= cache.min_budget,
            f"--window.budgets {drawn} may draw {smallest}, below cache: "
            f"--min_budget {cache.min_budget}; lower that to {smallest}, or raise the budgets",
        )
    require(
        config.model == cache.model or Path(config.model).absolute() == Path(cache.model).absolute(),
        f"--model {config.model} is not the teacher, cache: --model {cache.model}; name the same base",
    )
    if config.train.base_dtype != cache.base_dtype:
        experiment.findings.warn(
            "train", f"--train.base_dtype is {config.train.base_dtype}, cache: --base_dtype {cache.base_dtype}"
        )
