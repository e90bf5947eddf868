"""lm-eval's tasks on the files of --data_root: LV-Eval and InfiniteBench among them, the tokenizer, and refusals."""

import json
from pathlib import Path

import lm_eval.tasks
import pytest
from transformers import AutoTokenizer

from pipeline.errors import UserError
from pipeline.evaluation.infinitebench.tasks import INFINITEBENCH
from pipeline.evaluation.lm_eval_tasks import LVEVAL_TASKS, LocalTasks
from pipeline.evaluation.long_context.lm_eval_data import trust_no_tokenizer_code
from pipeline.evaluation.lveval.tasks import LVEVAL
from tests.evaluation.stand_in_benchmarks import repositories

INFINITE = {"include_defaults": False, "include_path": Path(lm_eval.tasks.__file__).parent / "infinitebench"}

LONGBENCH = Path(lm_eval.tasks.__file__).parent / "longbench"


@pytest.fixture
def data_root(tmp_path):
    for suite in (LVEVAL, INFINITEBENCH):
        (tmp_path / suite.name).mkdir()
        for name, content in repositories()[suite.repository].items():
            (tmp_path / suite.name / name).write_bytes(content)
    return tmp_path


def tasks_of(data_root, folder, **arguments):
    return LocalTasks(data_root, metadata={"pretrained": str(folder / "adapter"), **arguments}, **INFINITE)


def test_lveval_is_a_group_and_its_tasks_can_be_asked_for_alone(data_root, folder):
    tasks = tasks_of(data_root, folder)
    assert tasks.match_tasks(["lveval"]) == ["lveval"]
    assert tasks.match_tasks(["lveval_cmrc_*"]) == sorted(name for name in LVEVAL_TASKS if "_cmrc_" in name)
    loaded = tasks.load(["lveval"])
    assert list(loaded["tasks"]) == LVEVAL_TASKS and loaded["groups"].keys() == {"lveval"}
    (alone,) = tasks.load("lveval_cmrc_mixup_16k")["tasks"].values()
    tokenizer = AutoTokenizer.from_pretrained(folder / "base")
    lengths = {}
    for max_length in (700, 1024):  # the second is the base's own, which bounds full attention alone
        given = {"pretrained": str(folder / "base")} if max_length == 1024 else {"max_length": max_length}
        (task,) = tasks_of(data_root, folder, **given).load("lveval_cmrc_mixup_16k")["tasks"].values()
        (row,) = task.test_docs()
        assert row["truncated"] == 1
        lengths[max_length] = len(tokenizer(row["prompt"]).input_ids)
        assert max_length - 100 < lengths[max_length] < max_length - 64
    (row,) = alone.test_docs()
    assert row["truncated"] == 0 and len(tokenizer(row["prompt"]).input_ids) > 1024


def test_infinitebench_is_read_from_the_official_files_and_labelled(data_root, folder, caplog):
    rows = [{"id": i, "context": "c", "input": "i", "answer": answer} for i, answer in enumerate(([7], "x", None, []))]
    (data_root / "infinitebench/code_run.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = {"context": "c", "input": "i", "options": ["a", "b", "c", "d"], "answer": ["c"]}
    for name in ("code_debug", "longbook_choice_eng"):
        (data_root / f"infinitebench/{name}.jsonl").write_text(json.dumps(options) + "\n")
    loaded = tasks_of(data_root, folder).load(["infinitebench"])
    assert len(loaded["tasks"]) == 11 and loaded["groups"]["infinitebench"].alias == "infinitebench (lm-eval's variant)"
    found = {name: list(task.test_docs()) for name, task in loaded["tasks"].items()}
    assert [row["answer"] for row in found["infinitebench_code_run"]] == [["7"], ["x"]]
    assert "2 rows left out, line 3 because 'answer' must be a text, a number or a list" in caplog.text
    assert found["infinitebench_longbook_choice_en"][0]["options"] == ["a", "b", "c", "d"]
    assert found["infinitebench_passkey"][0]["answer"] == ["71432"]
    task = loaded["tasks"]["infinitebench_longbook_qa_en"]
    assert task.config.task_alias == "infinitebench_longbook_qa_en (lm-eval's variant)"
    assert task.process_results(found["infinitebench_longbook_qa_en"][0], ["json"]) == {"score": 1.0}


def test_what_needs_files_is_refused_without_them(folder, tmp_path):
    with pytest.raises(UserError, match=r"--tasks no_such_\*: lm-eval has no such task; `python -m .* ls tasks` lists"):
        tasks_of(None, folder).match_tasks(["no_such_*"])
    for name in ("lveval", "lveval_cmrc_mixup_16k", "infinitebench", "infinitebench_passkey"):
        suite = name.split("_")[0]
        with pytest.raises(UserError, match=f"--tasks {name}: give --data_root, .* --fetch {suite} --data_root FOLDER"):
            tasks_of(None, folder).match_tasks([name])
        with pytest.raises(UserError, match=f"--data_root {tmp_path} lacks .* --fetch {suite}"):
            tasks_of(tmp_path, folder).match_tasks([name])


def test_tasks_whose_prompts_a_tokenizer_cuts_are_refused_without_a_model(data_root):
    """As `--model dummy` names none."""
    tasks = LocalTasks(data_root, metadata={}, include_path=LONGBENCH, include_defaults=False)
    for name in ("lveval", "lveval_cmrc_mixup_16k", "paper_longbench", "paper_longbench_qmsum"):
        for ask in (tasks.match_tasks, tasks.load):
            with pytest.raises(UserError, match=f"--tasks {name}: .* give --model_args pretrained=FOLDER, also for"):
                ask([name])


def test_the_tokenizer_is_the_models_unless_another_is_named(folder):
    assert tasks_of(None, folder).metadata["tokenizer"] == str(folder / "base")
    assert tasks_of(None, folder, tokenizer="other").metadata["tokenizer"] == "other"


def test_no_code_of_a_tokenizer_runs(folder, tmp_path, monkeypatch):
    from lm_eval.tasks.ruler import common_utils

    monkeypatch.setattr(common_utils, "AutoTokenizer", AutoTokenizer)  # put back afterwards
    ran = tmp_path / "ran"
    (tmp_path / "own.py").write_text(f"open({str(ran)!r}, 'w')\nfrom transformers import LlamaTokenizer as Own\n")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"auto_map": {"AutoTokenizer": ["own.Own", None]}}))
    (tmp_path / "config.json").write_text((folder / "base/config.json").read_text())
    trust_no_tokenizer_code()
    with pytest.raises(Exception, match="trust_remote_code"):
        common_utils.get_tokenizer(tokenizer=str(tmp_path))
    assert not ran.exists()
    AutoTokenizer.from_pretrained(str(tmp_path), trust_remote_code=True)
    assert ran.exists(), "it would have run"
