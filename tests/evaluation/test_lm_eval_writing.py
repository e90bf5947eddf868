"""Results and kept answers of lm-eval that cannot be written: one line, before the run or after it."""

import logging
import resource
import sqlite3
from contextlib import contextmanager

import pytest
from lm_eval.api.model import CachingLM
from lm_eval.loggers import EvaluationTracker

from pipeline.errors import UserError
from pipeline.evaluation.lm_eval_writing import TRACKER, FailedWrites, check_answers, check_folder, kept_answers


@contextmanager
def small_files(size):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def save(folder, results):
    """As lm-eval's command line saves results."""
    EvaluationTracker(output_path=str(folder)).save_results_aggregated(results)


@pytest.mark.parametrize("level", [logging.INFO, logging.ERROR])
def test_results_that_were_not_written_are_one_line(tmp_path, monkeypatch, level):
    monkeypatch.setattr(logging.getLogger("lm_eval"), "level", level)
    monkeypatch.setattr(logging.getLogger(TRACKER), "level", logging.NOTSET)
    logging.getLogger(TRACKER).manager._clear_cache()
    failed = FailedWrites()
    save(tmp_path, {"results": {}})
    assert not failed.errors
    with small_files(1000):
        save(tmp_path, {"results": "long" * 1000})
    expected = r"^--output_path OUT: results could not be written \(File too large\); free disk space and run again; --"
    with pytest.raises(UserError, match=expected) as caught:
        failed.check("OUT")
    assert "\n" not in str(caught.value)
    FailedWrites().check("OUT")  # of another run


def test_another_failure_keeps_its_traceback(tmp_path):
    failed = FailedWrites()
    save(tmp_path, {"results": {(1, 2): "no key of JSON"}})
    with pytest.raises(TypeError, match="keys must be"):
        failed.check("OUT")


def test_places_that_cannot_be_written_are_one_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(
        UserError, match=r"^--output_path X: cannot be written \(Not a directory\); name another folder$"
    ):
        check_folder("--output_path X", tmp_path / "file/x")
    with pytest.raises(UserError, match=r"^--use_cache .*/file/x: cannot be written \(File exists\); name another"):
        check_answers(str(tmp_path / "file/x"), 0)


def test_a_file_that_holds_no_answers_is_one_line(tmp_path):
    path = str(tmp_path / "new/answers")
    check_answers(path, 1)
    CachingLM(Model(), f"{path}_rank1.db").dbdict.close()
    check_answers(path, 1)
    (tmp_path / "new/answers_rank0.db").write_bytes(b"no database" * 1000)
    with pytest.raises(UserError, match=r"^--use_cache: .*answers_rank0.db cannot be used \(file is not a database\)"):
        check_answers(path, 0)


class Model:
    def set_cache_hook(self, hook):
        self.cache_hook = hook


def test_answers_that_were_not_kept_are_one_line(tmp_path, caplog):
    answers = CachingLM(Model(), str(tmp_path / "answers.db")).dbdict
    with (
        small_files(20_000),
        pytest.raises(UserError, match=r"^--use_cache: answers could not be kept \(.*\); free disk space") as caught,
        kept_answers(),
    ):
        for i in range(100):
            answers[str(i)] = "long" * 1000
        answers.commit()
    assert isinstance(caught.value.__cause__, sqlite3.Error) and not caplog.records
