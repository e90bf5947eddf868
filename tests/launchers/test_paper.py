"""The list of the paper's tables and figures: every command is one that its launcher takes, and results are read."""

import json
import re
import shlex
from pathlib import Path

import lm_eval.tasks
import pytest
from lm_eval._cli.harness import HarnessCLI
from torch.distributed.run import get_args_parser

from pipeline.config import (
    AccountingConfig,
    EvalConfig,
    PrepareConfig,
    RecallStudyConfig,
    SubmitConfig,
    TrainRunConfig,
    parse_cli,
)
from pipeline.evaluation import paper_longbench
from pipeline.evaluation.paper.items import ITEMS
from pipeline.evaluation.paper.text import MISSING, as_markdown, as_text
from pipeline.launching.findings import Findings
from pipeline.launching.stages import CLASSES, build_stages
from tests.launchers.conftest import launch

ROOT = Path(__file__).parents[2]
COMMANDS = sorted({command for item in ITEMS for command in (*item.on_gpus, *item.on_cpu)})
CONFIGS = {
    "launchers/prepare.py": PrepareConfig,
    "launchers/train.py": TrainRunConfig,
    "launchers/run_eval.py": EvalConfig,
    "launchers/recall_study.py": RecallStudyConfig,
    "pipeline.metrics.accounting": AccountingConfig,
}
LM_EVAL = Path(lm_eval.tasks.__file__).parent
LM_EVAL_TASKS = "\n".join(
    path.read_text() for name in ("longbench", "ruler") for path in (LM_EVAL / name).glob("*.yaml")
)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_one_that_its_launcher_takes(command, monkeypatch):
    monkeypatch.chdir(ROOT)  # where recipes are
    program, *rest = shlex.split(command)
    if program == "make":
        assert re.search(rf"^{rest[0]}:", Path("Makefile").read_text(), re.MULTILINE)
        return
    if program == "torchrun":
        parsed = get_args_parser().parse_args(rest)
        assert parsed.nproc_per_node.isdigit() and parsed.module == ("-m" in rest)
        module, arguments = parsed.training_script, parsed.training_script_args
    else:
        if program == "deepspeed":
            assert rest[0] == "--num_gpus" and rest[1].isdigit()
            rest = rest[2:]
        module, *arguments = rest[1:] if rest[0] == "-m" else rest
    assert Path(module).is_file() or Path(module.replace(".", "/") + ".py").is_file()
    if module == "pipeline.evaluation.lm_eval_run":
        assert arguments[0] == "--data_root"
        parsed = HarnessCLI()._parser.parse_args(["run", *arguments[2:]])
        assert parsed.model == "ahn" and parsed.tasks
        for task in parsed.tasks:
            assert task == paper_longbench.GROUP or re.search(rf"^(task|group): {task}$", LM_EVAL_TASKS, re.MULTILINE)
    elif module == "launchers/submit.py":
        findings = Findings()
        stages = build_stages(parse_cli(SubmitConfig, arguments), {name: [] for name in CLASSES}, findings)
        assert not findings.errors and set(stages) == set(CLASSES)
    else:
        config = parse_cli(CONFIGS[module], arguments)
        if module == "launchers/train.py":
            assert config.ds_config.is_file()


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def test_results_are_shown_where_a_run_left_them(tmp_path):
    nothing = as_text(tmp_path)
    assert nothing.count(MISSING) == len(ITEMS)
    lveval = {"tasks": {"a_16k": {}}, "average": {"ahn": {"score": 1.25}}}
    write(tmp_path / "runs/paper/lveval/report.json", {"lveval": lveval})
    heldout = {"kl": {"window": 0.5, "ahn": 0.25}, "ppl": {"full": 8.0, "window": 9.0, "ahn": 8.5}}
    heldout |= {"num_documents": 2, "num_tokens": 1234}
    for folder in ("runs/demo", "runs/paper/cross-entropy", "runs/paper/drawn-windows"):
        write(tmp_path / folder / "evaluation/report.json", {"heldout": heldout})
    some = as_text(tmp_path)
    assert some.count(MISSING) == len(ITEMS) - 3
    assert "Scaled down, runs/paper/lveval: LV-Eval's a_16k:" in some
    assert re.search(r"sinks \+ window \+ AHN +0\.2500 +8\.500\n", some) and "1,234 tokens past the window" in some
    assert re.search(r"cross entropy, window of 128 +0\.2500 +0\.5000\n", some)
    write(tmp_path / "runs/paper/heldout/report.json", {"heldout": heldout | {"num_tokens": 5678}})
    assert "5,678 tokens past" in as_text(tmp_path)  # its own run comes before the demo's
    assert "| cross entropy, window of 128 | 0.2500 | 0.5000 |" in as_markdown(tmp_path)


def test_suites_are_read_as_they_report(tmp_path):
    places = {"evicted": {"recall": None}, "in_window": {"recall": 0.5}}
    write(tmp_path / "runs/paper/needles/report.json", {"needles": {"variants": {"window": places}}})
    context = {"variant": "ahn", "length": 2048, "prefill_s": 1.5, "decode_s": 0.02, "cache_bytes": 2**20}
    write(tmp_path / "runs/paper/efficiency/report.json", {"efficiency": {"contexts": [context]}})
    kind = {"class": "digits", "tokens": 7, "relative": 0.5, "ratio": 0.75}
    older = {"class": "words", "tokens": 8, "relative": 1.5}
    write(tmp_path / "runs/paper/probing/report.json", {"probing": {"classes": [kind, older]}})
    control = {"kl": {"foreign": 0.3}, "ppl": {"foreign": 8.75}}
    heldout = {"kl": {"ahn": 0.25}, "ppl": {"ahn": 8.5}, "control": control, "num_documents": 2, "num_tokens": 9}
    write(tmp_path / "runs/paper/heldout/report.json", {"heldout": heldout})
    cells = {"gated_delta_net": {"recovered": 0.4}}
    point = {"facts": 8, "distance": 2, "full": 1.0, "window": 0.1, "cells": cells}
    write(tmp_path / "runs/recall/recall.json", {"points": [point]})
    write(
        tmp_path / "runs/paper/longbench/m/results_2.json", {"results": {"longbench_hotpotqa": {"score,none": 0.125}}}
    )
    text = as_text(tmp_path)
    for row in (
        ("sinks + window", "none asked for", "50.0%"),
        ("sinks + window + AHN", "2,048", "1.500", "20.0", "1.00"),
        ("digits", "7", "0.75", "0.50"),
        ("words", "8", "not measured", "1.50"),
        ("AHN, another document's memory", "0.3000", "8.750"),
        ("8", "2", "100.0%", "10.0%", "40.0%"),
        ("longbench_hotpotqa", "0.1250"),
    ):
        assert re.search("^  " + " +".join(map(re.escape, row)) + "$", text, re.MULTILINE), row


@pytest.mark.slow
def test_the_launcher_writes_what_is_in_docs(tmp_path):
    done = launch("paper.py", "--output", tmp_path / "paper.md")
    assert (done.returncode, done.stdout) == (0, f"written: {tmp_path / 'paper.md'}\n"), done.stderr
    written, kept = (tmp_path / "paper.md").read_text(), (ROOT / "docs/paper.md").read_text()
    commands = [line for line in written.splitlines() if line in COMMANDS]
    assert set(commands) == set(COMMANDS)
    assert [line for line in kept.splitlines() if line in COMMANDS] == commands  # else: write docs/paper.md again
    done = launch("paper.py", "--output", tmp_path / "no/paper.md")
    assert done.returncode == 2 and done.stderr.startswith(f"error: --output {tmp_path / 'no/paper.md'}: cannot be")
