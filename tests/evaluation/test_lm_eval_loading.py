"""Which of lm-eval's tasks are loaded for wildcards, and whether they have the examples that are asked for."""

import json
from pathlib import Path

import lm_eval.tasks
import pytest
from lm_eval.config.evaluate_config import EvaluatorConfig

from pipeline.errors import UserError
from pipeline.evaluation.lm_eval_examples import check_examples
from pipeline.evaluation.lm_eval_loading import Tasks

TAG = "toy_tag"


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    """Tasks a, b and c of five rows, the tag of a and b, and groups: `toy_of` of a and `toy_all` of that and b."""
    folder = tmp_path_factory.mktemp("tasks")
    rows = "".join(json.dumps({"text": f"row {i}"}) + "\n" for i in range(5))
    (folder / "rows.jsonl").write_text(rows)
    for name in "abc":
        task = {
            "task": f"toy_{name}",
            "tag": TAG if name != "c" else None,
            "dataset_path": "json",
            "dataset_kwargs": {
                "data_files": {"test": str(folder / "rows.jsonl"), "train": str(folder / "rows.jsonl")},
                "cache_dir": str(folder / "cache"),
            },
            "test_split": "test",
            "fewshot_split": "train" if name == "a" else "test",
            "output_type": "loglikelihood_rolling" if name == "c" else "generate_until",
            "doc_to_text": "",
            "doc_to_target": "{{text}}",
            "metric_list": [{"metric": "bits_per_byte" if name == "c" else "exact_match"}],
        }
        (folder / f"{name}.yaml").write_text(json.dumps(task))  # JSON is YAML
    (folder / "of.yaml").write_text(json.dumps({"group": "toy_of", "task": ["toy_a"]}))
    (folder / "all.yaml").write_text(json.dumps({"group": "toy_all", "task": ["toy_of", {"task": "toy_b"}]}))
    return Tasks(include_path=folder, include_defaults=False)


def test_what_a_named_group_brings_is_loaded_once(tasks):
    names = tasks.match_tasks(["toy*"])
    assert set(names) == {"toy_a", "toy_b", "toy_c", "toy_all", "toy_of", TAG}
    loaded = tasks.load(names)
    assert list(loaded["tasks"]) == ["toy_a", "toy_b", "toy_c"]
    assert loaded["group_map"] == {"toy_all": ["toy_of", "toy_b"], "toy_of": ["toy_a"]}
    assert list(tasks.load(["toy_of", TAG])["tasks"]) == ["toy_a", "toy_b"], "a tag gives what the group does not"
    assert list(tasks.load([TAG])["tasks"]) == list(tasks.load(["toy_a", "toy_b"])["tasks"]) == ["toy_a", "toy_b"]


@pytest.mark.parametrize("folder", ["longbench", "longbench2"])
def test_lm_evals_own_groups_bring_each_task_once(folder):
    tasks = Tasks(include_path=Path(lm_eval.tasks.__file__).parent / folder, include_defaults=False)
    names = tasks.match_tasks(["longbench*"])
    left = [name for name in names if name not in tasks._brought(names)]
    brought = [task for name in left for task in tasks._members(name) if task in tasks.all_subtasks]
    assert sorted([*brought, *(name for name in left if name in tasks.all_subtasks)]) == tasks.all_subtasks


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"samples": {"toy_b": [0, 5]}}, "--samples toy_b: example 5 of 5; they are numbered from 0 to 4"),
        ({"samples": {"b": [0]}}, "--samples b: not among the tasks of --tasks; they are toy_a, toy_b"),
        ({"num_fewshot": 6}, "--num_fewshot 6: toy_a has 5 examples to show; give at most 5"),
        ({"num_fewshot": 5}, "--num_fewshot 5: toy_b has 4 examples to show; give at most 4"),
        ({"limit": 1}, "--tasks toy_a: 1 examples for 2 processes; start fewer"),
        ({"samples": {"toy_b": [3]}}, "--tasks toy_b: 1 examples for 2 processes; start fewer"),
    ],
)
def test_examples_that_are_not_there_are_one_line(tasks, settings, message):
    loaded = tasks.load(["toy_a", "toy_b"])["tasks"]
    with pytest.raises(UserError, match=f"^{message}$"):
        check_examples(EvaluatorConfig(**settings), 2, loaded)
    check_examples(EvaluatorConfig(samples={"toy_b": [0, 4]}, num_fewshot=4), 2, loaded)
