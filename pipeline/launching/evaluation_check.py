"""What can be said of an evaluation before it is submitted, also of a model that is still to be trained."""

from pipeline.attention.window import WindowSpec
from pipeline.config import EvalConfig, TrainRunConfig, require
from pipeline.evaluation.training_curve import read_training_curve
from pipeline.evaluation.variant_choice import choose_variants
from pipeline.evaluation.variant_windows import largest_budget
from pipeline.launching.checks import Experiment, check_tokenizer
from pipeline.model.files import ModelFiles, resolve_model


def check_evaluation(experiment: Experiment) -> None:
    """The evaluation: the model, there or to come, its variants, and documents that are long enough for its window."""
    stage, findings = experiment.stages.get("evaluate"), experiment.findings
    if stage is None:
        return
    config: EvalConfig = stage.config
    train_stage = experiment.stages.get("train")
    train: TrainRunConfig | None = None if train_stage is None else train_stage.config
    with findings.of("evaluate"):
        if config.run is not None and (train is None or config.run.absolute() != train.output.absolute()):
            read_training_curve(config.run)
    with findings.of("evaluate"):
        files = _model_files(config, train)
        window = files.choose_window(config.num_sink_tokens, config.window_size, config.num_retained_tokens)
        require(window is not None, f"--model {config.model} is a plain base without a memory; give an adapter")
        variants = choose_variants(config, files, window.num_retained_tokens)
        if config.data is None:
            needing = sorted({"heldout", "probing"} & set(config.suites))
            require(not needing, f"--data: --suites {', '.join(needing)} read packed documents; give them")
            return
        data = experiment.find_data(config.data, config.data_cache, config.data_cache_bytes)
        with findings.of("evaluate"):
            check_tokenizer(data, config.data, files.tokenizer)
        kept = window.without_retained
        most = largest_budget(variants, kept, window.decision_interval)
        least = kept.lossless_budget + 2
        require(
            data.seq_len >= least,
            f"--data {config.data} has sequence length {data.seq_len}, so no document reaches the {least} tokens at "
            f"which sinks + window = {kept.lossless_budget} leave something to measure; give a smaller "
            f"--window_size, or prepare longer samples",
        )
        if data.seq_len < most + 2:
            findings.warn(
                "evaluate",
                f"--data {config.data} has sequence length {data.seq_len}, and one of --variants {' '.join(variants)} "
                f"keeps W = {most} tokens: for it nothing is evicted; give fewer --num_retained_tokens or a smaller "
                f"--window_size, or prepare longer samples",
            )


def _model_files(config: EvalConfig, train: TrainRunConfig | None) -> ModelFiles:
    """Of --model; of an adapter that this chain trains, what it will say."""
    if train is None or config.model.absolute() != (train.output / "adapter").absolute():
        return resolve_model(config.model, config.base)
    trained, retained = train.window, train.window.num_inference_retained
    window = WindowSpec(trained.inference_sinks, trained.inference_window, retained, trained.interval(retained))
    return ModelFiles(config.model, "adapter", config.base or train.model, window, trained.has_scorer)
