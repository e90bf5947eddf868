"""ROUGE-L is a function of the two texts: of any length, under any caller, in our tasks and in lm-eval's."""

import importlib.util
import json
import random
import sys
import threading
from pathlib import Path

import lm_eval.tasks
import pytest
from rouge import rouge_score

from pipeline.evaluation.lm_eval_loading import Tasks
from pipeline.evaluation.long_context.rouge_l import mend_recursion, rouge_l
from pipeline.evaluation.long_context.suite import LongContextExample
from pipeline.evaluation.lveval import metrics

RECURSIVE = importlib.util.find_spec("rouge.rouge_score")  # the package's own walk, whatever was mended before


def package_as_it_ships():
    module = importlib.util.module_from_spec(RECURSIVE)
    RECURSIVE.loader.exec_module(module)
    return module


def with_much_stack(function):
    """The result of `function`, run where recursion of tens of thousands of calls is no matter."""
    found, limit = [], sys.getrecursionlimit()
    threading.stack_size(256 * 2**20)
    thread = threading.Thread(target=lambda: found.append(function()))
    sys.setrecursionlimit(50_000)
    try:
        thread.start()
        thread.join()
    finally:
        threading.stack_size(0)
        sys.setrecursionlimit(limit)
    return found[0]


def at_depth(calls, function):
    return function() if calls == 0 else at_depth(calls - 1, function)


def words(rng, count):
    return " ".join(rng.choice(["a", "b", "c", "d.", "e"]) for _ in range(count))


def test_a_score_is_the_packages_where_its_stack_suffices():
    rng = random.Random(3)
    texts = [(words(rng, rng.randrange(1, 12)), words(rng, rng.randrange(1, 12))) for _ in range(200)]
    texts.append((words(rng, 400).replace(".", ""), words(rng, 300).replace(".", "")))
    shipped = package_as_it_ships()
    for exclusive in (True, False):
        for prediction, reference in texts:
            sentences = [[" ".join(s.split()) for s in text.split(".") if s] for text in (prediction, reference)]
            ask = {"exclusive": exclusive}
            expected = with_much_stack(lambda: shipped.rouge_l_summary_level(*sentences, **ask))  # noqa: B023
            mend_recursion()
            assert rouge_score.rouge_l_summary_level(*sentences, **ask) == expected
            if exclusive:
                assert rouge_l(prediction, reference) == expected["f"]


@pytest.mark.parametrize("text", ["", ".", "..."])
def test_a_text_without_a_sentence_scores_nothing(text):
    assert rouge_l(text, "word") == rouge_l("word", text) == 0
    assert rouge_l("word", "word") == pytest.approx(1, abs=1e-7)


@pytest.mark.parametrize(("count", "room"), [(300, 250), (1010, None)])  # as shipped, these score 0
def test_depth_and_length_change_no_score(count, room, tmp_path, monkeypatch):
    text, chinese = " ".join(f"w{i}" for i in range(count)), "北京上海" * (count // 2)
    monkeypatch.setattr(rouge_score, "_recon_lcs", package_as_it_ships()._recon_lcs)
    (tmp_path / "rows.jsonl").write_text(json.dumps({"context": "", "question": "", "answers": ["other", text]}))
    files = {"data_files": {"test": str(tmp_path / "rows.jsonl")}, "cache_dir": str(tmp_path / "cache")}
    qmsum = {"task": "longbench_qmsum", "dataset_path": "json", "dataset_name": None, "dataset_kwargs": files}
    tasks = Tasks(include_path=Path(lm_eval.tasks.__file__).parent / "longbench", include_defaults=False)
    (task,) = tasks.load([qmsum])["tasks"].values()
    monkeypatch.setattr(rouge_score, "_recon_lcs", package_as_it_ships()._recon_lcs)
    example, (row,) = LongContextExample("", "", "", (chinese,)), task.eval_docs
    depth = 0 if room is None else sys.getrecursionlimit() - room
    assert at_depth(depth, lambda: metrics.blacklisted_rouge_l(chinese, example)) == pytest.approx(1, abs=1e-7)
    monkeypatch.setattr(rouge_score, "_recon_lcs", package_as_it_ships()._recon_lcs)
    tasks.load([qmsum])
    assert at_depth(depth, lambda: task.process_results(row, [text]))["score"] == pytest.approx(1, abs=1e-6)
