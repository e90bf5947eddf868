"""LongBench as the AHN paper's code runs it: which sets, what is cut where, what the template goes around."""

import json
from pathlib import Path

import lm_eval.tasks
import pytest

from pipeline.attention.window import WindowSpec
from pipeline.evaluation import paper_longbench
from pipeline.evaluation.lm_eval_loading import Tasks
from pipeline.evaluation.lm_eval_tasks import LocalTasks
from pipeline.evaluation.paper_longbench import GROUP, WINDOW, cut_answer, paper_longbench_group
from pipeline.evaluation.published import protocol_table

LONGBENCH = {"include_path": Path(lm_eval.tasks.__file__).parent / "longbench", "include_defaults": False}
BOOK = "the session is a folder with tokens. " * 2400  # more than 32,000 tokens of the tiny tokenizer
SETS = ("hotpotqa", "triviaqa")


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rows")
    rows = [{"context": c, "question": "Who?", "answers": ["json"], "all_classes": None} for c in ("short", BOOK)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = {"data_files": {"test": str(folder / "rows.jsonl")}, "cache_dir": str(folder / "cache")}
    data = {"dataset_path": "json", "dataset_name": None, "dataset_kwargs": files}
    tasks = Tasks(**LONGBENCH)
    return {
        f"{GROUP}_{name}": tasks.load([{"task": f"longbench_{name}", **data}])["tasks"][f"longbench_{name}"]
        for name in SETS
    }


def wrap(messages, add_generation_prompt):
    assert add_generation_prompt
    return "".join(f"[{m['role']}]{m['content']}" for m in messages) + "[a]"


def prompts_of(task, **options):
    task.build_all_requests(**options)
    return [instance.args[0] for instance in task.instances], [instance.args[1] for instance in task.instances]


def test_prompts_lose_their_beginning_within_the_template_which_spares_triviaqa(originals, tokenizer):
    group = paper_longbench_group(originals, tokenizer, WINDOW, apply_chat_template=True)
    tasks = {task.task_name: task for task in group}
    assert list(tasks) == list(originals) and group.alias == GROUP
    for name, task in tasks.items():
        (short, long), settings = prompts_of(task, apply_chat_template=True, chat_template=wrap)
        whole = originals[name].doc_to_text(originals[name].eval_docs[1])
        if name.endswith("triviaqa"):
            assert short.endswith("short\n\nWho?") and not short.startswith("[")
            whole = whole.removesuffix("Who?") + "\nWho?"
        else:
            assert short.startswith("[user]Answer the question") and short.endswith("Answer:[a]")
            assert long.startswith("[user]") and long.endswith("[a]")
            long = long.removeprefix("[user]").removesuffix("[a]")
        assert long == tokenizer.decode(tokenizer(whole).input_ids[-(32_000 - 32) :], skip_special_tokens=True)
        assert [row["truncated"] for row in task.eval_docs] == [0, 1]
        assert settings[0] == {"until": [], "do_sample": False, "max_gen_toks": 32}


def test_answers_are_scored_up_to_what_follows_them(originals, tokenizer):
    for end in (".assistant", "\n\nQuestion: x", "</s>", " (Document 2)", "\n\nAnswer", "(Passage"):
        assert cut_answer(f"{GROUP}_hotpotqa", f" json{end} more") == "json"
    assert cut_answer(f"{GROUP}_hotpotqa", "json\nmore") == "json\nmore"
    assert cut_answer(f"{GROUP}_triviaqa", "\n\njson\nmore") == "json"
    assert cut_answer(f"{GROUP}_dureader", "答案 问题：更多") == "答案"
    group = paper_longbench_group(originals, tokenizer, WINDOW, apply_chat_template=True)
    task = next(iter(group))
    assert task.process_results(task.eval_docs[1], ["json\n\nQuestion: and more"]) == {"score": 1.0, "truncated": 1}


def test_what_differs_from_the_paper_is_in_the_label(originals, tokenizer):
    def label(window, applied):
        return paper_longbench_group({}, tokenizer, window, apply_chat_template=applied).alias

    assert label(None, True) == GROUP
    assert label(WINDOW, False) == f"{GROUP} (the paper's: chat template)"
    both = f"{GROUP} (the paper's: S = 128, R = 8,064; chat template)"
    assert label(WindowSpec(128, 32640), False) == label(WindowSpec(0, 8064), False) == both
    for task in paper_longbench_group(originals, tokenizer, WINDOW, apply_chat_template=False):
        assert task.config.task_alias == f"{task.task_name} (the paper's: chat template)"  # also alone
    sets = protocol_table("longbench").rows[0][1].split(", ")
    assert sets == list(paper_longbench.NEW_TOKENS) and paper_longbench.NEW_TOKENS["qmsum"] == 500


def test_the_command_line_lists_the_group_and_its_tasks_and_no_wildcard_of_lm_evals_has_them(folder):
    tasks = LocalTasks(None, metadata={"pretrained": str(folder / "adapter")}, **LONGBENCH)
    names = [GROUP, *paper_longbench.TASKS]
    assert tasks.match_tasks([f"{GROUP}*"]) == sorted(names)
    assert not set(tasks.match_tasks(["longbench*"])) & set(names)
    assert all(f"\n{name}" in tasks.list_all_tasks() for name in names)
    assert set(paper_longbench.TASKS.values()) <= set(tasks.all_tasks)
