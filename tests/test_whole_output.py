"""What is written is whole or absent, and anyone may read it whom the umask lets."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.errors import UserError
from pipeline.whole_output import whole_file, whole_folder


@pytest.fixture(params=[0o022, 0o002, 0o027, 0o077], ids=oct)
def umask(request):
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def modes(path: Path) -> set[int]:
    return {file.stat().st_mode & 0o777 for file in [path, *path.rglob("*")] if file.is_file()}


def test_files_get_the_mode_that_the_umask_gives(tmp_path, umask):
    with whole_file(tmp_path / "a.safetensors") as path:
        save_file({"x": torch.ones(2)}, path)
    with whole_folder(tmp_path / "model") as folder:
        save_file({"x": torch.ones(2)}, folder / "b.safetensors")
        (folder / "sub").mkdir()
        save_file({"x": torch.ones(2)}, folder / "sub/c.safetensors")
    assert modes(tmp_path) == {0o666 & ~umask}
    assert (tmp_path / "model").stat().st_mode & 0o777 == 0o777 & ~umask
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.safetensors", "model"]


def test_what_fails_leaves_nothing_new_and_the_old_as_it_was(tmp_path):
    (tmp_path / "file").write_text("old")
    for kind, name in ((whole_file, "file"), (whole_folder, "folder")):
        with pytest.raises(KeyboardInterrupt), kind(tmp_path / name) as path:
            (path / "part" if path.is_dir() else path).write_text("half")
            raise KeyboardInterrupt
    assert [path.name for path in tmp_path.iterdir()] == ["file"] and (tmp_path / "file").read_text() == "old"
    with pytest.raises(OSError), whole_folder(tmp_path / "file") as path:
        (path / "x").touch()
    assert (tmp_path / "file").read_text() == "old" and len(list(tmp_path.iterdir())) == 1


def test_an_empty_folder_is_replaced_and_what_is_there_refused_before_the_work(tmp_path):
    (tmp_path / "out").mkdir()
    for is_first in (True, False):
        try:
            with whole_folder(tmp_path / "out") as folder:
                assert is_first, "the work would be lost"
                (folder / "x").touch()
        except FileExistsError:
            assert not is_first
    (tmp_path / "link").symlink_to(tmp_path / "nothing")
    with pytest.raises(FileExistsError), whole_folder(tmp_path / "link"):
        raise AssertionError
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["x"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "out"]


def test_a_lock_that_another_writer_has_removed_fails_no_finished_work(tmp_path):
    """As two do on a file system without locks."""
    with whole_folder(tmp_path / "out") as folder:
        (folder / "x").touch()
        (tmp_path / ".out.lock").unlink()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["x"]


def test_two_writers_of_one_place_do_not_meet(tmp_path):
    with whole_folder(tmp_path / "out") as first:
        (first / "x").write_text("first")
        with pytest.raises(UserError, match="out: another process is writing it"), whole_folder(tmp_path / "out"):
            raise AssertionError
    assert (tmp_path / "out/x").read_text() == "first"


def test_what_a_killed_writer_left_is_gone_after_the_next(tmp_path):
    code = (
        "import os, signal, sys; from pathlib import Path; from pipeline.whole_output import whole_folder\n"
        "with whole_folder(Path(sys.argv[1])) as f: (f / 'half').touch(); os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "out"], cwd=Path(__file__).parents[1])
    assert done.returncode == -signal.SIGKILL and not (tmp_path / "out").exists()
    assert len(list(tmp_path.iterdir())) == 2  # the lock and the unfinished folder
    with whole_folder(tmp_path / "out") as folder:
        assert list(folder.iterdir()) == []
        save_file({"x": torch.ones(2)}, folder / "w")
    assert [path.name for path in tmp_path.iterdir()] == ["out"] and load_file(tmp_path / "out/w")["x"].sum() == 2
    shutil.rmtree(tmp_path / "out")
