"""Starts add up, and nothing else is written over."""

import json

import pytest

from pipeline.errors import UserError
from pipeline.evaluation.starts import note_start


def test_starts_add_up(tmp_path):
    for _ in range(2):
        note_start(tmp_path)
    (first, second) = json.loads((tmp_path / "run.json").read_text())["starts"]
    assert first["command"] == second["command"]


@pytest.mark.parametrize("content", ['{"starts": [], "settings": {}}', "[]", '{"starts"'])
def test_a_run_json_of_something_else_is_never_replaced(tmp_path, content):
    """A training's would be lost, with which it goes on."""
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(UserError, match="holds something else"):
        note_start(tmp_path)
    assert (tmp_path / "run.json").read_text() == content
