"""Submits an experiment to Slurm as one chain of jobs: data, teacher cache, training, evaluation.

    python launchers/submit.py --config EXPERIMENT.yaml --site SITE.yaml --dry_run
    python launchers/submit.py --config EXPERIMENT.yaml --site SITE.yaml --train.train.max_steps 100 --follow

Everything that is wrong is listed before anything is submitted, exit code 2; --dry_run also shows sbatch's command
lines. What a stage has finished is not done again, so the same command goes on with a chain that has failed. With
--follow: exit code 0 when all jobs completed, else 1. docs/slurm.md tells the rest.
"""

import sys
from pathlib import Path

from data_prep.inputs import find_inputs
from data_prep.sources import Source, load_sources
from data_prep.tokenization import resolve_tokenizer
from pipeline.config import PrepareConfig, SubmitConfig, parse_cli
from pipeline.errors import EXIT_USER_ERROR, run_cli
from pipeline.launching.checks import Experiment, check_cluster, check_outputs, check_preparation
from pipeline.launching.evaluation_check import check_evaluation
from pipeline.launching.findings import Findings
from pipeline.launching.jobs import build_jobs
from pipeline.launching.results import split_finished
from pipeline.launching.slurm import check_jobs, follow, submit
from pipeline.launching.stage_checks import check_cache_stage, check_finished, check_training
from pipeline.launching.stages import build_stages, split_command_line

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    argv, overrides = split_command_line(sys.argv[1:])
    config, findings = parse_cli(SubmitConfig, argv), Findings()
    stages, finished = split_finished(build_stages(config, overrides, findings))
    check_finished(finished, findings)
    experiment = Experiment(config, stages, {}, findings)
    check_preparation(experiment, check_documents, read_tokenizer)
    for check in (check_outputs, check_cache_stage, check_training, check_evaluation, check_cluster):
        check(experiment)
    jobs = build_jobs(config, stages, ROOT)
    check_jobs(jobs, findings)
    for name, stage in finished.items():
        print(f"{name}: {stage.config.output} is finished, left out")
    if config.dry_run:
        for job in jobs:
            print(job.describe())
    print(findings, end="", file=sys.stderr, flush=True)
    if findings.errors:
        sys.exit(EXIT_USER_ERROR)
    if config.dry_run or not jobs:
        return
    numbers = submit(jobs)
    for name, number in numbers.items():
        print(f"{name}: job {number}", flush=True)
    if config.follow and not follow(numbers, config.poll_seconds, lambda line: print(line, flush=True)):
        sys.exit(1)


def check_documents(config: PrepareConfig) -> None:
    """Looks for the documents of a preparation; those of Hugging Face datasets only the job itself can find.

    Raises:
        DataError: there are none.
    """
    given = {"inputs": config.inputs, "exclude": config.exclude, "min_bytes": config.min_bytes}
    if config.extensions:
        given["extensions"] = config.extensions
    sources = [Source("default", **given)] if config.sources is None else load_sources(config.sources)
    for source in sources:
        if source.dataset is None:
            find_inputs(source)


def read_tokenizer(config: PrepareConfig) -> str:
    """The fingerprint of a preparation's tokenizer.

    Raises:
        DataError: it cannot be read.
    """
    return resolve_tokenizer(config.tokenizer, config.append_eos).sha256


if __name__ == "__main__":
    run_cli(main, "ends now; jobs that were submitted go on")
