"""`make clean` never deletes a training."""

import shutil
import subprocess
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]


def test_clean_leaves_runs_alone(tmp_path):
    shutil.copy(REPOSITORY / "Makefile", tmp_path)
    for name in (".venv/bin/python", ".cache/model", "runs/demo/adapter"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    subprocess.run(["make", "clean"], cwd=tmp_path, check=True, capture_output=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["Makefile", "runs"]
    assert (tmp_path / "runs/demo/adapter").is_file()
