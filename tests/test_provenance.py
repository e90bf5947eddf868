"""What run.json says of how a folder came about."""

import json
import os
import subprocess
import sys
from pathlib import Path

from pipeline.provenance import describe_start, find_commit, list_starts

IDENTITY = {f"GIT_{who}_{what}": "a@b" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}


def git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ | IDENTITY).stdout.strip()


def test_the_commit_is_that_of_this_checkout_alone_and_says_whether_files_differ(tmp_path):
    git(tmp_path, "init")
    (tmp_path / "code.py").write_text("1")
    assert find_commit(tmp_path) is None  # no commit yet
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "first")
    git(tmp_path, "tag", "v1")
    head = git(tmp_path, "rev-parse", "HEAD")
    assert find_commit(tmp_path) == head
    (tmp_path / "code.py").write_text("2")
    assert find_commit(tmp_path) == f"{head}-dirty"
    (tmp_path / "site-packages").mkdir()
    assert find_commit(tmp_path / "site-packages") is None


def test_starts_add_up(tmp_path):
    path = tmp_path / "run.json"
    assert len(list_starts(path)) == 1
    path.write_text(json.dumps({"settings": {}, "starts": [{"command": ["before"]}]}))
    first, second = list_starts(path)
    assert first == {"command": ["before"]} and second["command"] == sys.argv
    assert {"commit", "host", "started"} <= second.keys() and second["versions"]["torch"]
    assert describe_start(["no such package"])["versions"]["no such package"] is None
