"""Training with retained tokens: scorers are fitted first, saved, and fixed while the cell learns."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pipeline.config import ConfigError, TeacherCacheConfig, TrainRunConfig, parse_cli
from pipeline.data.dataset import PackedDataset
from pipeline.errors import UserError
from pipeline.model.export import export_published, merge_adapter
from pipeline.model.loading import load_model
from pipeline.teacher.capture import run_capture
from pipeline.teacher.capture_plan import plan_capture
from tests.distributed.processes import TRAIN, run_ranks
from tests.training import cached_runs
from tests.training.launched_runs import arguments, assert_one_line, mathematics

RETAINED = ("--window.retained", "[0, 3]", "--window.decision_interval", "3", "--train.scorer_samples", "9")
STEPS = ("--train.max_steps", "4", "--train.save_every", "1", "--train.keep_checkpoints", "9")
SIGNALLED = Path(__file__).parents[1] / "signalled_run.py"


@pytest.fixture(scope="module")
def runs(inputs, tmp_path_factory) -> Path:
    """A folder of runs of two ranks, one of which has a sample more: whole ones of two ZeRO stages, one that is
    interrupted, one that only fits and is started twice, one with another loss."""
    folder = tmp_path_factory.mktemp("retained")

    def run(name: str, *flags: str, zero: str = "zero2", until: int | None = None) -> tuple[list[str], int | None]:
        return [str(x) for x in arguments(inputs, folder / name, *RETAINED, *STEPS, *flags, zero=zero)], until

    fit = run("fit", "--train.loss", "retention")
    cache, num_samples = folder / "cache", len(PackedDataset(inputs / "data"))
    named = {"model": inputs / "model", "data": inputs / "data", "output": cache, "signal": "hidden"}
    named |= {"base_dtype": "float32", "later_mass_samples": num_samples}
    run_capture(plan_capture(parse_cli(TeacherCacheConfig, [f"--{k}={v}" for k, v in named.items()])), 0, 1, 0)
    every = ("--train.max_steps", "1", "--train.scorer_samples", str(num_samples), "--window.retained", "3")
    every += ("--window.budgets", "12", "--window.sinks", "2")
    planned = [
        run("zero2"),
        run("zero3", zero="zero3"),
        run("interrupted", until=2),
        run("interrupted"),
        fit,
        fit,
        run("ce", "--train.loss", "ce", "--train.max_steps", "1"),
        run("every", *every),
        run("cached", *every, "--teacher_cache", str(cache)),
    ]
    (folder / "runs.json").write_text(json.dumps(planned))
    finished = run_ranks(Path(cached_runs.__file__), [folder / "runs.json"], folder)
    assert [f.returncode for f in finished] == [0, 0], finished[0].output[-3000:] + finished[1].output[-3000:]
    return folder


def weights(run: Path, step: int) -> dict[str, torch.Tensor]:
    state = load_file(run / f"checkpoints/step-{step:07d}/tensors.safetensors")
    return {name.removeprefix("weight/"): x for name, x in state.items() if name.startswith("weight/")}


def scorers(run: Path, step: int) -> dict[str, torch.Tensor]:
    return {name: x for name, x in weights(run, step).items() if ".ahn.retention." in name}


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_scorers_are_fitted_before_the_first_step_and_stay_as_they_are(runs):
    first, last = scorers(runs / "zero2", 0), scorers(runs / "zero2", 4)
    are_fitted = {name: x.abs().max() > 0 for name, x in first.items()}
    # Of a base with random weights some heads read the more the older a token is, which no score has.
    assert len(first) == 8 and all(fitted for name, fitted in are_fitted.items() if "position" not in name)
    for name, value in first.items():
        assert torch.equal(last[name], value)
        assert torch.equal(scorers(runs / "fit", 0)[name], value) and torch.equal(scorers(runs / "ce", 1)[name], value)
        torch.testing.assert_close(scorers(runs / "zero3", 4)[name], value, rtol=1e-3, atol=1e-4)
    moved = [n for n, x in weights(runs / "zero2", 4).items() if not torch.equal(x, weights(runs / "zero2", 0)[n])]
    assert any("o_proj" in name for name in moved)
    facts = json.loads((runs / "zero2" / "scorers.json").read_text())
    assert facts["samples"] == 9 and facts["candidates"] > 9 and len(facts["before"]) == 2
    assert all(after < before for before, after in zip(facts["before"], facts["after"], strict=True))


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_every_stage_and_every_start_trains_the_same(runs):
    rows, other = mathematics(runs / "zero2"), mathematics(runs / "zero3")
    assert [row["step"] for row in rows] == list(range(5))
    assert rows[0]["scorer/loss"] < rows[0]["scorer/loss_before"]
    assert {row["window/budget"] for row in rows[1:]} - {20, 22, 24}  # some samples retain tokens
    for row, same in zip(rows[1:], other[1:], strict=True):
        assert row["data/positions"] == same["data/positions"]
        assert same["loss/kl"] == pytest.approx(row["loss/kl"], abs=1e-5)
    assert mathematics(runs / "interrupted")[1:] == rows[1:]
    for name, value in weights(runs / "zero2", 4).items():
        assert torch.equal(weights(runs / "interrupted", 4)[name], value)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_run_that_only_fits_leaves_an_adapter_whose_cell_does_nothing(runs, tmp_path):
    assert [row["step"] for row in mathematics(runs / "fit")] == [0]
    assert "Scorers of retained tokens" in (runs / "fit/report.html").read_text()
    model = load_model(str(runs / "fit/adapter"), dtype=torch.float32, check=False)
    assert model.config.ahn | {"num_retained_tokens": 3, "decision_interval": 3} == model.config.ahn
    tokens = torch.arange(45)[None] % 90
    with torch.no_grad():
        logits = model(tokens, use_cache=False).logits
        torch.testing.assert_close(model(tokens, use_cache=False, use_memory=False).logits, logits, rtol=0, atol=0)
        merge_adapter(runs / "fit/adapter", tmp_path / "merged", check=False)
        merged = load_model(str(tmp_path / "merged"), dtype=torch.float32)
        torch.testing.assert_close(merged(tokens, use_cache=False).logits, logits, rtol=0, atol=0)
        for layer in merged.get_decoder().layers:
            layer.ahn.retention.weight.neg_()
        assert (merged(tokens, use_cache=False).logits - logits).abs().max() > 1e-3  # the scores decide
    with pytest.raises(UserError, match=r"--layout published: .* has scorers .* use --layout merged"):
        export_published(runs / "fit/adapter", tmp_path / "published")
    assert not (tmp_path / "published").exists()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_later_masses_of_a_teacher_cache_give_the_same_scorers(runs):
    """Of the same samples in another order."""
    own, cached = (json.loads((runs / name / "scorers.json").read_text()) for name in ("every", "cached"))
    assert (own["samples"], own["candidates"]) == (cached["samples"], cached["candidates"])
    assert cached["before"] == pytest.approx(own["before"], rel=1e-4)
    assert cached["after"] == pytest.approx(own["after"], rel=1e-2)
    assert mathematics(runs / "cached")[-1]["teacher/cached_samples"] > 0


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_stop_during_the_fit_saves_nothing_and_says_so(inputs, tmp_path):
    before_the_third_sample = ["pipeline.training.scorer_phase:collate", 3, "SIGTERM", 0]
    signalled = [TRAIN, *before_the_third_sample, *arguments(inputs, tmp_path / "run", *RETAINED, *STEPS)]
    stopped = run_ranks(SIGNALLED, signalled, tmp_path)
    assert [finished.returncode for finished in stopped] == [85, 85], stopped[0].output[-2000:]
    assert "SIGTERM: stops after this sample; the scorers are not fitted yet" in stopped[0].output
    assert "stopped before the scorers were fitted; the same command begins again" in stopped[0].output
    assert not any((tmp_path / "run/checkpoints").iterdir())


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_samples_in_which_nothing_leaves_its_window_are_one_line(inputs, tmp_path):
    flags = ("--window.retained", "2", "--window.budgets", "40", "--window.sinks", "0", "--train.scorer_samples", "2")
    refused = run_ranks(TRAIN, arguments(inputs, tmp_path / "run", *flags), tmp_path, num_ranks=1)[0]
    assert_one_line(refused, "--window.retained [2]: in the first 2 samples", "raise --train.scorer_samples")


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (("--train.loss", "retention"), "--train.loss retention fits what chooses retained tokens"),
        (("--window.retained", "[4, 4]"), "--window.retained: needs at least one value, each >= 0 and named once"),
        (("--window.retained", "[-1]"), "each >= 0"),
        (("--window.decision_interval", "4"), "--window.decision_interval 4: goes with --window.retained above 0"),
        (("--window.inference_retained", "8"), "--window.inference_retained 8: nothing learns"),
        (("--train.scorer_samples", "0"), "--train.scorer_samples: must be >= 1"),
        (("--train.gate_learning_rate", "0"), "--train.gate_learning_rate: must be > 0"),
        (("--train.gate_weight_decay", "-1"), "--train.gate_weight_decay: must be >= 0"),
        (
            ("--window.retained", "[8]", "--sequence_parallel_mode", "halo", "--sequence_parallel_size", "2"),
            "--sequence_parallel_mode halo: no rank has all the tokens that --window.retained [8] keeps",
        ),
    ],
)
def test_wrong_settings_are_one_line(flags, expected, tmp_path):
    common = ["--model", "m", "--data", "d", "--output", str(tmp_path), "--ds_config", "z.json"]
    with pytest.raises(ConfigError) as found:
        parse_cli(TrainRunConfig, [*common, *flags])
    assert expected in str(found.value)
