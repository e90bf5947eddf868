import os
import signal

import pytest
import torch

from pipeline.errors import UserError
from pipeline.training.checkpoint import load_state, load_tensors, save_checkpoint
from pipeline.training.run_folder import RunFolder, TrainState


def tensors(step):
    weights = {"layer.A_log": torch.full((3,), float(step)), "layer.weight": torch.full((2, 2), float(step))}
    return weights, {
        f"{key}/{name}": value + 0.5 for key in ("exp_avg", "exp_avg_sq") for name, value in weights.items()
    }


def save(folder, step, keep=2):
    save_checkpoint(folder, TrainState(step, 4 * step, 1), *tensors(step), keep)


@pytest.fixture
def folder(tmp_path):
    run = RunFolder(tmp_path)
    run.checkpoints.mkdir()
    return run


def assert_whole(folder, steps):
    checkpoint = folder.latest_checkpoint()
    state = load_state(checkpoint)
    assert state.step in steps and state.consumed_samples == 4 * state.step
    weights, moments = load_tensors(checkpoint)
    expected_weights, expected_moments = tensors(state.step)
    assert weights.keys() == expected_weights.keys() and moments.keys() == expected_moments.keys()
    assert all(torch.equal(weights[n], v) for n, v in expected_weights.items())
    assert all(torch.equal(moments[n], v) for n, v in expected_moments.items())


def test_what_was_saved_is_loaded_and_only_the_newest_stay(folder):
    assert folder.latest_checkpoint() is None and load_state(None) == TrainState(0, 0, 0)
    for step in (2, 4, 6):
        save(folder, step)
    assert_whole(folder, {6})
    assert sorted(p.name for p in folder.checkpoints.iterdir()) == ["latest", "step-0000004", "step-0000006"]


def test_a_kill_at_any_instant_of_a_save_leaves_a_whole_checkpoint(folder):
    """A child is killed before its n-th call that touches the disk, for every n; then the save is done again."""
    save(folder, 1)
    step, instants = 1, 0
    while True:
        instants += 1
        step += 1
        child = os.fork()
        if child == 0:
            save_until_killed(folder, step, instants)
        _, status = os.waitpid(child, 0)
        assert_whole(folder, {step - 1, step})
        save(folder, step)
        assert_whole(folder, {step})
        if os.WIFEXITED(status):
            assert os.WEXITSTATUS(status) == 0
            break
        assert os.WTERMSIG(status) == signal.SIGKILL
    assert instants > 12
    assert not [p for p in folder.checkpoints.iterdir() if p.name.startswith(".tmp")]


def save_until_killed(folder, step, instants):
    left = instants

    def counted(real):
        def call(*args, **kwargs):
            nonlocal left
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **kwargs)

        return call

    for name in ("fsync", "rename", "replace", "mkdir", "open", "unlink", "rmdir"):
        setattr(os, name, counted(getattr(os, name)))
    try:
        save(folder, step)
    except BaseException:
        os._exit(1)
    os._exit(0)


def test_saving_a_step_again_that_a_crash_left_unnamed_replaces_it(folder):
    save(folder, 1)
    save(folder, 2)
    (folder.checkpoints / "latest").write_text("step-0000001")
    (folder.checkpoints / "step-0000002" / "tensors.safetensors").write_bytes(b"")
    save(folder, 2)
    assert_whole(folder, {2})


@pytest.mark.parametrize("damage", [lambda p: p.write_bytes(p.read_bytes()[:-1] + b"x"), lambda p: p.unlink()])
def test_damaged_tensors_are_refused_by_name(folder, damage):
    save(folder, 3)
    damage(folder.checkpoints / "step-0000003" / "tensors.safetensors")
    with pytest.raises(UserError, match=r"step-0000003/tensors\.safetensors is damaged"):
        load_tensors(folder.latest_checkpoint())


def test_latest_naming_a_missing_folder_is_refused(folder):
    (folder.checkpoints / "latest").write_text("step-0000009")
    with pytest.raises(UserError, match="names step-0000009, which is missing"):
        folder.latest_checkpoint()
