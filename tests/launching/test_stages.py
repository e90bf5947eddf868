"""An experiment on paper: command lines, what a stage takes from those before, the site's options, no Slurm needed."""

import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from pipeline.config import ConfigError, Resources, SiteConfig, SubmitConfig, parse_cli
from pipeline.errors import UserError
from pipeline.launching.checks import check_weights
from pipeline.launching.findings import Findings
from pipeline.launching.jobs import build_jobs
from pipeline.launching.stages import build_stages, split_command_line
from pipeline.training.schedules import draw_window
from tests.launchers.conftest import REPOSITORY, launch

RECIPES = REPOSITORY / "launchers" / "recipes"
SECTIONS = {
    "prepare": {"inputs": ["a b", "c"], "tokenizer": "base", "output": "data"},
    "cache": {"signal": "topk", "k": 9, "output": "cache"},
    "train": {"ds_config": "zero.json", "output": "run", "train": {"max_steps": 7, "mixture": {"x": 1.0}}},
    "evaluate": {"data": "heldout", "output": "eval"},
}


def stages_of(sections, *argv, **settings):
    rest, overrides = split_command_line(argv)
    assert rest == []
    findings = Findings()
    stages = build_stages(SubmitConfig(**sections, **settings), overrides, findings)
    assert not findings.errors, findings
    return stages


def test_a_stage_takes_from_those_before_it_what_it_leaves_out():
    stages = stages_of(SECTIONS)
    cache, train, evaluate = (stages[name].config for name in ("cache", "train", "evaluate"))
    assert stages["prepare"].config.inputs == ["a b", "c"]
    assert (cache.model, cache.data, cache.k) == ("base", "data", 9)
    assert (train.model, train.data, train.teacher_cache) == ("base", "data", Path("cache"))
    assert (train.train.max_steps, train.train.mixture) == (7, {"x": 1.0})
    assert (evaluate.model, evaluate.run) == (Path("run/adapter"), Path("run"))


def test_recipe_then_section_then_command_line(tmp_path):
    (tmp_path / "recipe.yaml").write_text("train: {max_steps: 1, seed: 1, save_every: 1}\nmodel: of the recipe\n")
    section = SECTIONS["train"] | {"config": str(tmp_path / "recipe.yaml"), "train": {"max_steps": 2, "seed": 2}}
    argv = ["--train.train.max_steps", "3", "--train.output=elsewhere", "--prepare.inputs", "x", "y"]
    stages = stages_of(SECTIONS | {"train": section}, *argv)
    config = stages["train"].config
    assert (config.train.max_steps, config.train.seed, config.train.save_every) == (3, 2, 1)
    assert (config.model, str(config.output)) == ("of the recipe", "elsewhere")
    assert str(stages["evaluate"].config.run) == "elsewhere" and stages["prepare"].config.inputs == ["x", "y"]


def test_a_recipe_of_the_command_line_is_layered_over_the_sections(tmp_path):
    """A list there replaces the section's, and is not added to it."""
    (tmp_path / "a.yaml").write_text("train: {max_steps: 1, seed: 1}\nmodel: of a\n")
    (tmp_path / "b.yaml").write_text("train: {seed: 22}\n")
    section = {**SECTIONS["train"], "config": str(tmp_path / "a.yaml"), "train": {"max_steps": 5}}
    argv = ["--train.config", str(tmp_path / "b.yaml"), "--prepare.inputs", "x"]
    stages = stages_of(SECTIONS | {"train": section}, *argv)
    config = stages["train"].config
    assert (config.model, config.train.max_steps, config.train.seed) == ("of a", 5, 22)
    assert stages["prepare"].config.inputs == ["x"]


def test_a_local_copy_on_the_nodes_reads_the_data_by_url():
    stages = stages_of(SECTIONS, site=SiteConfig(data_cache="/scratch/%j"))
    assert stages["train"].config.data == f"file://{Path('data').absolute()}"
    assert stages["cache"].config.data == "data"


def test_all_stages_that_cannot_be_read_are_named():
    findings = Findings()
    sections = SECTIONS | {"train": {"ouput": "run"}, "evaluate": SECTIONS["evaluate"] | {"dtype": "int3"}}
    build_stages(SubmitConfig(**sections), {name: [] for name in SECTIONS}, findings)
    assert [line.split(":")[0] for line in findings.errors] == ["train", "evaluate"]
    assert "ouput" in findings.errors[0] and "int3" in findings.errors[1]


def test_jobs_ask_for_what_the_site_says_and_wait_for_each_other():
    site = SiteConfig(
        account="us", hours=2, gpus_per_node=8, cpus_per_task=6, sbatch=["--mail-type=END"],
        modules=["cuda/12", "nccl"], container=["apptainer", "exec", "my image.sif"],
        environment={"A": "$(touch x); 'y"}, data_cache="/local/%j",
        prepare=Resources(gpus_per_node=0, tasks_per_node=32, cpus_per_task=1, partition="cpu"),
        train=Resources(nodes=4, hours=24, sbatch=["--exclusive"]),
    )  # fmt: skip
    config = SubmitConfig(site=site, cache_jobs=5, verify_samples=100, **SECTIONS)
    jobs = {job.name: job for job in build_jobs(config, stages_of(SECTIONS), REPOSITORY)}
    common = ["--mail-type=END"]
    assert jobs["prepare"].options == [
        *("--job-name=prepare", "--account=us", "--partition=cpu", "--time=120", "--ntasks-per-node=32"),
        *("--cpus-per-task=1", *common),
    ]
    assert jobs["train"].options == [
        *("--job-name=train", "--account=us", "--nodes=4", "--gpus-per-node=8", "--time=1440", "--cpus-per-gpu=6"),
        *(*common, "--exclusive"),
    ]
    assert (
        jobs["cache"].options[-1] == "--array=0-4" and jobs["finish_cache"].environment["AHN_VERIFY_SAMPLES"] == "100"
    )
    numbers = dict(zip(jobs, "12345", strict=True))
    depends = [[p for p in job.command(numbers) if p.startswith("--dependency")] for job in jobs.values()]
    assert depends == [
        [],
        ["--dependency=afterok:1"],
        ["--dependency=afterok:1,afterany:2"],
        ["--dependency=afterok:3"],
        ["--dependency=afterok:4"],
    ]
    environment = jobs["train"].environment
    assert environment["A"] == "$(touch x); 'y" and environment["AHN_PYTHON"] == "python"
    assert environment["AHN_CONTAINER"].split("\n") == ["apptainer", "exec", "my image.sif"]
    assert (environment["AHN_MODULES"], environment["AHN_DATA_CACHE"]) == ("cuda/12 nccl", "/local/%j")


@pytest.mark.parametrize(
    ("site", "message"),
    [
        ({"modules": ["cuda 12"]}, "no module's name"),
        ({"sbatch": ["exclusive"]}, "begin with a dash"),
        ({"hours": 0}, "hours must be > 0"),
        ({"train": {"nodes": 0}}, "nodes must be >= 1"),
    ],
)
def test_a_site_that_cannot_be_is_refused(site, message, tmp_path):
    (tmp_path / "site.yaml").write_text(yaml.safe_dump(site))
    with pytest.raises(ConfigError, match=message):
        parse_cli(SubmitConfig, ["--site", str(tmp_path / "site.yaml")])


def test_the_shipped_site_and_experiment_can_be_read():
    config = parse_cli(SubmitConfig, ["--config", str(RECIPES / "experiments" / "qwen2.5-3b-gdn.yaml")])
    assert config.site.of_stage("train").num_processes == 32
    stages = stages_of({name: getattr(config, name) for name in SECTIONS})
    assert list(stages) == list(SECTIONS)
    assert stages["train"].config.train.grad_accum_steps(32) == 4


def recipe_of(name):
    given = {"config": str(RECIPES / f"{name}.yaml"), "model": "m", "data": "d", "output": "o", "ds_config": "z"}
    return stages_of({"train": given})["train"].config


@pytest.mark.parametrize("size", ["3b", "7b", "14b"])
def test_the_recipes_with_retained_tokens_differ_in_nothing_else_and_leave_something_to_evict(size):
    published, config = recipe_of(f"qwen2.5-{size}-gdn"), recipe_of(f"qwen2.5-{size}-gdn-retained")
    retained = {"retained": [0, 256, 1024], "decision_interval": 32, "inference_retained": 1024}
    assert config == replace(published, window=replace(published.window, **retained))
    for length in (40, 300, 1344, 2500, 10_600, 24_576):
        plain, drawn = (
            [draw_window(0, sample, length, c.window) for sample in range(400)] for c in (published, config)
        )
        assert [window.without_retained for window in drawn] == plain
        assert max(window.lossless_budget for window in drawn) < length
        numbers = {window.num_retained_tokens for window in drawn}
        assert numbers == {
            m for m in (0, 256, 1024) if m == 0 or min(w.lossless_budget for w in plain) + m + 31 < length
        }
    counts = Counter(window.num_retained_tokens for window in drawn)  # of whole samples
    assert counts.keys() == {0, 256, 1024} and min(counts.values()) > 100


@pytest.mark.parametrize("size", ["3b", "7b", "14b"])
def test_the_recipes_are_the_published_settings(size):
    """arXiv 2510.07318, section 4.1."""
    config = recipe_of(f"qwen2.5-{size}-gdn")
    train = config.train
    assert (train.max_steps, train.global_batch_size, train.learning_rate, train.weight_decay) == (740, 128, 1e-4, 0.1)
    assert (train.warmup_ratio, train.loss, train.loss_normalisation, train.base_dtype) == (
        0.1,
        "kl",
        "samples",
        "bfloat16",
    )
    assert (config.memory.cell, config.memory.init, train.micro_batch_size) == ("gated_delta_net", "published", 1)
    assert config.window.budgets is None and config.window.sinks == [0, 32, 64, 128, 512, 2048, 4096]
    assert (config.window.inference_sinks, config.window.inference_window) == (128, 32640)


def test_a_hub_id_needs_its_weights_on_this_machine(tmp_path):
    with pytest.raises(UserError, match=r"--model owner/none: its weights are not .* `hf download owner/none`"):
        check_weights("owner/none", {})
    check_weights("owner/none", {"HF_HUB_OFFLINE": "0"})
    check_weights(str(tmp_path), {})
    check_weights("/no/such/folder", {})  # said by those who look for its tokenizer


def test_the_shipped_experiment_elsewhere_names_all_that_is_missing():
    experiment = ["--config", RECIPES / "experiments" / "qwen2.5-3b-gdn.yaml", "--site.prepare.gpus_per_node", "null"]
    command = [sys.executable, "launchers/submit.py", *experiment, "--prepare.num_workers", "4", "--dry_run"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, env=os.environ | {"PATH": "/none"})
    assert done.returncode == 2 and done.stdout.count("sbatch --parsable") == 5
    warning, *found = done.stderr.splitlines()
    assert warning.startswith("warning: prepare: asks for GPUs")
    assert all(line.startswith("error: ") for line in found), done.stderr
    beginnings = (
        *("prepare: --num_workers and --mpi", "prepare: --inputs /shared/", "prepare: --tokenizer /shared/"),
        *("cache: --model /shared/", "train: --model /shared/", "evaluate: data folder /shared/"),
    )
    for beginning in beginnings:
        assert [line for line in found if line.startswith(f"error: {beginning}")], (beginning, done.stderr)


def test_without_slurm_and_torch_it_says_what_is_missing(tmp_path):
    (tmp_path / "torch.py").write_text("raise ImportError('torch was imported')\n")
    missing = {"PATH": "/nonexistent", "PYTHONPATH": f"{tmp_path}:{REPOSITORY}"}
    done = launch("submit.py", "--train.output", tmp_path / "run", "--dry_run", **missing)
    assert done.returncode == 2, done.stderr
    assert done.stderr.splitlines() == [
        "error: train: the following arguments are required: model, data, ds_config",
        "error: site: sbatch, scontrol, scancel not found; submit where Slurm's commands are on the PATH",
    ]
    assert sys.executable not in done.stdout


def test_text_of_an_experiment_arrives_as_it_is():
    texts = ["null", "[a]", "# b", "--c=d", "e f"]
    sections = SECTIONS | {
        "prepare": SECTIONS["prepare"] | {"inputs": texts, "exclude": [], "text_field": "~"},
        "train": SECTIONS["train"] | {"teacher_cache": None, "train": {"wandb": "[1]", "max_steps": 3}},
    }
    stages = stages_of(sections)
    prepare, train = stages["prepare"].config, stages["train"].config
    assert (prepare.inputs, prepare.exclude, prepare.text_field) == (texts, [], "~")
    assert (train.teacher_cache, train.train.wandb) == (None, "[1]")  # not the cache stage's
    findings = Findings()
    build_stages(
        SubmitConfig(prepare=SECTIONS["prepare"] | {"tokenizer": 5}), {name: [] for name in SECTIONS}, findings
    )
    assert "--tokenizer: expected text, found 5" in str(findings)
