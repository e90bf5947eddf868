"""launchers/train.py for real: two ranks, kills, stops, resumes, and what goes wrong while it runs."""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pipeline.data.loader import PackedDataset, SampleStream
from pipeline.metrics.logger import read_metrics
from pipeline.model.loading import load_model
from pipeline.training.checkpoint import find_checkpoint
from pipeline.training.run_folder import RunFolder
from tests.distributed.processes import (
    TRAIN,
    deepspeed_command,
    environment,
    kill_group,
    run,
    run_ranks,
    started,
)
from tests.drill import record
from tests.training.launched_runs import (
    GLOBAL_BATCH,
    LONG,
    MAX_STEPS,
    SHORT,
    arguments,
    assert_one_line,
    mathematics,
    wait_for_step,
)
from tests.training.synthetic import make_data, make_model

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


def test_a_run_leaves_metrics_checkpoints_adapter_and_report(uninterrupted, inputs):
    rows = mathematics(uninterrupted)
    assert [row["step"] for row in rows] == list(range(1, MAX_STEPS + 1))
    assert [row["data/consumed_samples"] for row in rows] == [GLOBAL_BATCH * row["step"] for row in rows]
    losses = [row["loss/kl"] for row in rows if "loss/kl" in row]
    assert 0 < sum(losses[-5:]) < sum(losses[:5])
    checkpoints = sorted(p.name for p in (uninterrupted / "checkpoints").iterdir())
    assert checkpoints == ["latest", "step-0000028", "step-0000030"]
    for name in ("report.html", "training.png", "config.yaml"):
        assert (uninterrupted / name).stat().st_size > 100
    weights = load_file(uninterrupted / "checkpoints" / "step-0000030" / "tensors.safetensors")
    model = load_model(str(uninterrupted / "adapter"), dtype=torch.float32)
    for name, parameter in model.named_parameters():
        assert (".ahn." not in name) or torch.equal(parameter, weights[f"weight/{name}"])
    assert model.config.ahn["num_sink_tokens"] == 2 and model.config.ahn["window_size"] == 14
    assert model.get_parameter("model.layers.1.ahn.fn.o_proj.weight").abs().max() > 1e-3


def test_steps_without_any_position_are_skipped_and_counted(uninterrupted, inputs):
    stream = SampleStream(PackedDataset(inputs / "data"), seed=0)
    idle, rows = 0, mathematics(uninterrupted)
    for step, row in enumerate(rows):
        samples = [stream.read(step * GLOBAL_BATCH + i)[1] for i in range(GLOBAL_BATCH)]
        is_idle = all(sample.longest_document == max(SHORT) for sample in samples)
        idle += is_idle
        assert ("loss/kl" in row) != is_idle and row["train/skipped_steps"] == idle
    assert 0 < idle < MAX_STEPS / 2
    state = json.loads((uninterrupted / "checkpoints" / "step-0000030" / "state.json").read_text())
    assert state["skipped_steps"] == idle


@pytest.mark.drill
@pytest.mark.timeout(1200)
def test_killed_many_times_at_random_instants_it_is_the_same_run(uninterrupted, inputs, tmp_path):
    """Twenty kills after random times, saves at every step, so that many fall into a save; seed in the output."""
    output, seed, num_kills = tmp_path / "run", random.randrange(2**32), 20
    print(f"seed {seed}")
    generator = random.Random(seed)
    frequent_saves = arguments(inputs, output, "--train.save_every", "1")
    steps_at_kills, began = [], time.monotonic()
    for _ in range(num_kills):
        with started(deepspeed_command(2, frequent_saves), tmp_path / "log", environment()) as process:
            done = len(read_metrics(output / "metrics.jsonl"))
            wait_for_step(output, min(done + 1, MAX_STEPS), time.monotonic() + 60)
            time.sleep(generator.uniform(0, 0.2))
            kill_group(process)
        steps_at_kills.append(len(read_metrics(output / "metrics.jsonl")))
    finished = run(deepspeed_command(2, frequent_saves), tmp_path / "log")
    assert finished.returncode == 0, finished.output[-3000:]
    assert mathematics(output) == mathematics(uninterrupted)
    last = Path("checkpoints") / "step-0000030" / "tensors.safetensors"
    assert (output / last).read_bytes() == (uninterrupted / last).read_bytes()
    record(
        "train_kills",
        {
            "seed": seed,
            "kills": num_kills,
            "steps_logged_at_kills": steps_at_kills,
            "steps": MAX_STEPS,
            "ranks": 2,
            "losses_and_final_checkpoint_equal_to_the_last_bit": True,
            "seconds": round(time.monotonic() - began),
        },
    )


def test_a_stop_signal_to_one_rank_saves_and_ends_all_and_another_topology_goes_on(uninterrupted, inputs, tmp_path):
    output = tmp_path / "run"

    def stop_first_rank(first_pid: int) -> None:
        wait_for_step(output, 9, time.monotonic() + 60)
        os.kill(first_pid, signal.SIGUSR1)

    stopped = run_ranks(TRAIN, arguments(inputs, output), tmp_path, meanwhile=stop_first_rank)
    assert [f.returncode for f in stopped] == [85, 85], stopped[0].output[-2000:]
    saved = json.loads((find_checkpoint(RunFolder(output))[0] / "state.json").read_text())["step"]
    assert saved == len(read_metrics(output / "metrics.jsonl")) >= 9
    (finished,) = run_ranks(TRAIN, arguments(inputs, output, zero="zero3"), tmp_path, num_ranks=1)
    assert finished.returncode == 0, finished.output[-3000:]
    for row, expected in zip(mathematics(output), mathematics(uninterrupted), strict=True):
        assert row == pytest.approx(expected, rel=1e-3)


def test_a_damaged_sample_ends_every_rank_with_its_name(inputs, tmp_path):
    data = make_data(tmp_path / "data", inputs / "model", [LONG] * 12, seq_len=48)
    stream = SampleStream(PackedDataset(data), seed=0)
    damaged = stream.dataset_index(2 * GLOBAL_BATCH + 1)  # third step, first micro-batch of rank 1
    key = stream.dataset[damaged].key
    shard = next(data.glob("*.tar"))
    raw = bytearray(shard.read_bytes())
    raw[raw.index(f"{key}.input_ids.npy".encode()) + 900] ^= 1
    shard.write_bytes(raw)
    for finished in run_ranks(TRAIN, arguments(inputs, tmp_path / "run", data=data), tmp_path):
        assert_one_line(finished, shard.name, f"sample {damaged}", "is damaged")
        assert finished.seconds < 60
    assert [row["step"] for row in read_metrics(tmp_path / "run" / "metrics.jsonl")] == [1, 2]


def test_a_nan_loss_stops_all_ranks_with_step_samples_and_the_state_before(inputs, tmp_path):
    model, marked = make_model(tmp_path / "model", poisoned=True), 7
    data = make_data(tmp_path / "data", model, [LONG] * 12, seq_len=48, marked=marked)
    stream = SampleStream(PackedDataset(data), seed=0)
    place = next(i for i in range(12) if stream.dataset_index(i) == marked)
    step, rank, key = place // GLOBAL_BATCH + 1, place % 2, stream.dataset[marked].key
    output = tmp_path / "run"
    for finished in run_ranks(TRAIN, arguments(inputs, output, model=model, data=data), tmp_path):
        assert_one_line(finished, f"step {step}: the loss is nan (on rank {rank})", key, "failed_step.json")
    report = json.loads((output / "failed_step.json").read_text())
    assert report["step"] == step and report["failed_ranks"] == [rank]
    assert key in [sample["key"] for sample in report["samples_by_rank"][rank]]
    checkpoint = find_checkpoint(RunFolder(output))[0]
    assert json.loads((checkpoint / "state.json").read_text())["step"] == step - 1
    assert all(tensor.isfinite().all() for tensor in load_file(checkpoint / "tensors.safetensors").values())


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--train.learning_rat", "0.1"], "learning_rat"),
        (["--model", "/nowhere/model"], "--model /nowhere/model does not exist"),
        (["--train.global_batch_size", "3"], "--train.global_batch_size 3 is not a multiple"),
    ],
)
def test_wrong_input_is_one_line_on_every_rank_within_seconds(inputs, tmp_path, flags, expected):
    train = arguments(inputs, tmp_path / "run", *flags)
    for rank, finished in enumerate(run_ranks(TRAIN, train, tmp_path, anew=True)):
        assert_one_line(finished, expected, f"(rank {rank})")
        assert finished.seconds < 15
    assert not (tmp_path / "run").exists()


def test_help_lists_every_setting_with_its_meaning(tmp_path):
    finished = run([sys.executable, TRAIN, "--help"], tmp_path / "log", cwd=tmp_path)
    assert finished.returncode == 0
    for part in ("--train.max_steps", "--window.budgets", "--ds_config", "--resume", "Peak learning rate"):
        assert part in finished.output
