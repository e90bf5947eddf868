"""Looks at lm-eval's command line before anything is loaded: what cannot work gets one line."""

import argparse
import hashlib
import inspect
import json
from pathlib import Path
from typing import get_args

from lm_eval.config.evaluate_config import EvaluatorConfig

from pipeline.distributed.launch import find_rank
from pipeline.errors import UserError
from pipeline.evaluation.facts import weights_fingerprint
from pipeline.evaluation.lm_eval_generation import check_generation
from pipeline.evaluation.lm_eval_model import Dtype, HippocampusLM
from pipeline.evaluation.lm_eval_settings import check_file, check_numbers, read_samples
from pipeline.evaluation.lm_eval_writing import check_answers, check_folder
from pipeline.model.files import WINDOW_FLAGS, ModelFiles, resolve_model
from pipeline.tokenizer import load_tokenizer

_ARGUMENTS = [name for name in inspect.signature(HippocampusLM).parameters if name not in ("device", "batch_size")]
_LEAST = {"prefill_chunk": 1, "max_length": 2, "num_sink_tokens": 0, "window_size": 1, "num_retained_tokens": 0}


def read_config(asked: argparse.Namespace) -> EvaluatorConfig:
    """lm-eval's settings, from its flags and from the YAML file of --config, as it will read them itself.

    Raises:
        UserError: they contradict each other, name nothing to do, or --output_path cannot be written.
    """
    in_file = check_file(asked.config) if asked.config else {}
    asked.samples = read_samples(in_file.get("samples") if asked.samples is None else asked.samples)
    try:
        config = EvaluatorConfig.from_cli(asked)
    except (ValueError, TypeError, OSError) as error:
        raise UserError(" ".join(str(error).split())) from error
    if isinstance(config.tasks, str):
        config.tasks = [config.tasks]
    config.tasks = [name for part in config.tasks for name in part.split(",")]
    if not config.tasks:
        raise UserError("--tasks: name some; `python -m pipeline.evaluation.lm_eval_run ls tasks` lists them")
    check_numbers(config)
    if config.output_path:
        path = Path(config.output_path)
        check_folder(f"--output_path {path}", path.parent if path.suffix == ".json" else path)
    return config


def check_model(config: EvaluatorConfig) -> ModelFiles:
    """Checks --model_args and --gen_kwargs of model `ahn`.

    Raises:
        UserError: one is unknown or out of range, or the model or its tokenizer is not there.
    """
    given = config.model_args or {}
    unknown = [name for name in given if name not in _ARGUMENTS]
    if unknown:
        flag = f"give it as --{unknown[0]}" if unknown[0] in ("device", "batch_size") else "it takes"
        known = "" if flag != "it takes" else f" {', '.join(_ARGUMENTS)}"
        raise UserError(f"--model_args {unknown[0]}={given[unknown[0]]}: {flag}{known}")
    if "pretrained" not in given:
        raise UserError("--model_args: give pretrained=FOLDER, an adapter, a merged model or a base")
    if config.max_batch_size is not None:
        raise UserError(f"--max_batch_size {config.max_batch_size}: requests run one at a time; leave it out")
    for name, least in _LEAST.items():
        value = given.get(name)
        if value is not None and (type(value) is not int or value < least):
            raise UserError(f"--model_args {name}={value}: must be a whole number >= {least}")
    if given.get("dtype", "auto") not in get_args(Dtype):
        raise UserError(f"--model_args dtype={given['dtype']}: must be one of {', '.join(get_args(Dtype))}")
    files = resolve_model(Path(str(given["pretrained"])), given.get("base"))
    files.choose_window(*(given.get(name) for name in WINDOW_FLAGS))
    name = str(given.get("tokenizer", files.tokenizer))
    tokenizer = load_tokenizer(name, "--model_args tokenizer", trust_remote_code=bool(given.get("trust_remote_code")))
    if config.apply_chat_template and tokenizer.chat_template is None:
        raise UserError(f"--apply_chat_template: the tokenizer {name} has no chat template; leave it out")
    check_generation(config.gen_kwargs or {}, tokenizer)
    return files


def answers_file(config: EvaluatorConfig, files: ModelFiles) -> str | None:
    """--use_cache's file for this very model: lm-eval looks answers up by their prompts alone.

    Raises:
        UserError: it cannot be written.
    """
    if not config.use_cache:
        return None
    facts = json.dumps([weights_fingerprint(files), config.model_args], sort_keys=True, default=str)
    path = f"{config.use_cache}-{hashlib.sha256(facts.encode()).hexdigest()[:16]}"
    check_answers(path, find_rank().rank)
    return path
