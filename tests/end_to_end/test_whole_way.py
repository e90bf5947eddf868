"""Documents in, a better-than-window model out: every launcher in turn, as the README gives them, at tiny size."""

import json
import shutil
import sysconfig
from pathlib import Path

import pytest

from tests.conftest import TINY_VOCAB_SIZE
from tests.distributed.processes import REPOSITORY, deepspeed_command, run
from tests.launchers.conftest import launch
from tests.tiny_models import make_base

STEPS = 40
RECIPE = {
    "window.budgets": "[32]",
    "window.sinks": "[4]",
    "window.inference_sinks": 4,
    "window.inference_window": 28,
    "train.max_steps": STEPS,
    "train.global_batch_size": 4,
    "train.micro_batch_size": 2,
    "train.learning_rate": 0.01,
    "train.base_dtype": "float32",
    "train.activation_checkpointing": "false",
    "train.save_every": STEPS,
}


@pytest.fixture(scope="module")
def way(tmp_path_factory, tiny_tokenizer):
    """The folder in which prepare, train and run_eval have run."""
    folder = tmp_path_factory.mktemp("way")
    base = make_base(folder / "base", tiny_tokenizer, TINY_VOCAB_SIZE)
    library = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    sources = [path for path in library if 12_000 < path.stat().st_size < 20_000][:24]
    for split, files in (("train", sources[8:]), ("heldout", sources[:8])):
        (folder / f"{split}.txt").write_text("".join(f"{path}\n" for path in files))
        packing = ["--tokenizer", base, "--output", folder / split, "--seq_len", 256]
        done = launch("prepare.py", "--inputs", f"@{folder}/{split}.txt", *packing)
        assert done.returncode == 0, done.stderr
    recipe = [part for name, value in RECIPE.items() for part in (f"--{name}", value)]
    files = ["--model", base, "--data", folder / "train", "--output", folder / "run"]
    arguments = ["--ds_config", REPOSITORY / "ds_configs/zero2.json", *files, *recipe]
    trained = run(deepspeed_command(2, arguments), folder / "train.log", timeout=150)
    assert trained.returncode == 0, trained.output
    measured = ["--suites", "heldout", "--pieces_per_document", 2]
    measured += ["--data", folder / "heldout", "--output", folder / "eval"]
    done = launch("run_eval.py", "--model", folder / "run/adapter", *measured, "--run", folder / "run")
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow
def test_training_leaves_a_memory_that_beats_the_window_on_held_out_documents(way) -> None:
    report = json.loads((way / "eval/report.json").read_text())["heldout"]
    assert report["num_documents"] == 8
    assert report["window"] == {"num_sink_tokens": 4, "window_size": 28, "lossless_budget": 32}
    assert report["kl"]["ahn"] < report["kl"]["window"]
    assert report["recovered"]["ahn"]["difference_ci95"][0] > 0


@pytest.mark.slow
def test_report_shows_the_run_it_came_from(way) -> None:
    assert len((way / "run/metrics.jsonl").read_text().splitlines()) == STEPS
    page = (way / "eval/report.html").read_text()
    assert page.count('src="data:image/png;base64,') == 4 and "Training loss by optimizer step" in page


@pytest.mark.slow
def test_the_merged_model_says_what_the_adapter_says(way) -> None:
    whole = ["--output", way / "merged", "--dtype", "float32"]  # as the base is, so the weights are the same
    merged = launch("merge_adapter.py", "--adapter", way / "run/adapter", *whole, anew=True)
    assert merged.returncode == 0, merged.stderr
    prompt = ["--prompt", (REPOSITORY / "pipeline/errors.py").read_text()[:400], "--max_new_tokens", 12]
    texts = [launch("generate.py", "--model", way / name, *prompt).stdout for name in ("run/adapter", "merged")]
    assert texts[0] == texts[1] and texts[0].strip()


@pytest.mark.slow
def test_the_adapter_generates_and_needs_its_own_base(way) -> None:
    prompt = (REPOSITORY / "pipeline/errors.py").read_text()[:400]
    model = ["--model", way / "run/adapter", "--max_new_tokens", 8]
    done = launch("generate.py", *model, "--prompt", prompt)
    assert done.returncode == 0 and "tokens in the memory" in done.stderr
    other = way / "other"
    shutil.copytree(way / "base", other)
    weights = bytearray((other / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (other / "model.safetensors").write_bytes(weights)
    done = launch("generate.py", *model, "--prompt", prompt, "--base", other)
    assert done.returncode == 2 and done.stderr.startswith("error: ") and str(other) in done.stderr
