import contextlib
import os
import resource
import signal
import threading
from pathlib import Path

import pytest
import torch

from pipeline.errors import UserError
from pipeline.training.checkpoint import find_checkpoint, load_state, load_tensors, save_checkpoint
from pipeline.training.run_folder import RunFolder, TrainState
from pipeline.training.saver import Saver


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
    checkpoint, _ = find_checkpoint(folder)
    state = load_state(checkpoint)
    assert state.step in steps and state.consumed_samples == 4 * state.step
    weights, moments = load_tensors(checkpoint)
    expected_weights, expected_moments = tensors(state.step)
    assert weights.keys() == expected_weights.keys() and moments.keys() == expected_moments.keys()
    assert all(torch.equal(weights[n], v) for n, v in expected_weights.items())
    assert all(torch.equal(moments[n], v) for n, v in expected_moments.items())


def test_what_was_saved_is_loaded_and_only_the_newest_stay(folder):
    assert find_checkpoint(folder) == (None, []) and load_state(None) == TrainState(0, 0, 0)
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


def truncate(path):
    path.write_bytes(path.read_bytes()[:-9])


def flip(path):
    path.write_bytes(path.read_bytes()[:-1] + b"x")


DAMAGES = {
    "tensors-gone": ("tensors.safetensors", Path.unlink, "is missing tensors.safetensors"),
    "tensors-short": ("tensors.safetensors", truncate, "has a damaged tensors.safetensors"),
    "tensors-other": ("tensors.safetensors", flip, "has a damaged tensors.safetensors"),
    "state-gone": ("state.json", Path.unlink, "is missing state.json"),
    "state-short": ("state.json", truncate, "has a damaged state.json"),
    "state-null": ("state.json", lambda path: path.write_text("null"), "has a damaged state.json"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_torn_checkpoint_is_named_and_the_newest_whole_one_taken(folder, damage):
    for step in (1, 2, 3):
        save(folder, step, keep=3)
    name, spoil, expected = DAMAGES[damage]
    spoil(folder.checkpoints / "step-0000003" / name)
    checkpoint, torn = find_checkpoint(folder)
    assert checkpoint.name == "step-0000002"
    assert len(torn) == 1 and torn[0].startswith(f"step-0000003 {expected}")
    for step in (1, 2):
        spoil(folder.checkpoints / f"step-{step:07d}" / name)
    with pytest.raises(UserError, match=rf"no whole checkpoint: step-0000003 {expected}.*step-0000001"):
        find_checkpoint(folder)


@pytest.mark.parametrize("pointer", ["step-0000009", "", "\0"])
def test_latest_that_names_nothing_is_passed_over(folder, pointer):
    save(folder, 3)
    (folder.checkpoints / "latest").write_text(pointer)
    assert_whole(folder, {3})
    assert len(find_checkpoint(folder)[1]) == 1


def test_latest_can_send_a_run_back_and_what_came_after_goes_with_its_next_save(folder):
    for step in (2, 4, 6):
        save(folder, step, keep=3)
    (folder.checkpoints / "latest").write_text("step-0000002")
    assert_whole(folder, {2})
    save(folder, 3)
    assert_whole(folder, {3})
    assert sorted(p.name for p in folder.checkpoints.iterdir()) == ["latest", "step-0000002", "step-0000003"]


def test_a_full_disk_leaves_the_checkpoint_before_and_no_rest(folder):
    save(folder, 1)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    size = (folder.checkpoints / "step-0000001" / "tensors.safetensors").stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (size - 1, before[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            save(folder, 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert_whole(folder, {1})
    assert sorted(p.name for p in folder.checkpoints.iterdir()) == ["latest", "step-0000001"]
    save(folder, 2)
    assert_whole(folder, {2})


@pytest.mark.parametrize("in_background", [False, True])
def test_an_error_of_a_save_is_kept_and_nothing_is_written_after_it(in_background, tmp_path):
    with contextlib.closing(Saver(in_background)) as saver:
        saver.save(lambda: (tmp_path / "nowhere" / "file").write_text("x"), "the first")
        assert "cannot write the first: " in str(saver.wait())
        saver.save(lambda: (tmp_path / "file").write_text("x"), "the second")
        assert "cannot write the first: " in str(saver.error())
    assert not (tmp_path / "file").exists()


def test_a_background_save_leaves_its_caller_free_and_comes_to_its_end(tmp_path):
    go_on = threading.Event()
    with contextlib.closing(Saver(in_background=True)) as saver:
        saver.save(lambda: go_on.wait(20) and (tmp_path / "file").write_text("x"), "a file")
        assert saver.error() is None and not (tmp_path / "file").exists()
        go_on.set()
    assert (tmp_path / "file").read_text() == "x" and saver.wait() is None
