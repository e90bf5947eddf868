"""run_eval.py of a model that retains tokens, as a user runs it."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tests.launchers.conftest import launch
from tests.tiny_models import TINY_WINDOW, make_adapter

M = 6
DEFAULT = ["full", "window", f"wider{M}", f"retained{M}", f"retained{M}_ahn", "ahn"]
SMALL = ["--needles.tasks", "passkey", "--needles.depths", 0, "--needles.lengths", 300, "--absorbed.facts", 1,
         "--absorbed.documents", 1, "--absorbed.windows", 1, "--efficiency.new_tokens", 1, "--efficiency.lengths", 64,
         "--max_documents", 2, "--pieces_per_document", 1,
         "--suites", "heldout", "needles", "absorbed", "efficiency"]  # fmt: skip


@pytest.fixture(scope="module")
def scored(tiny, tmp_path_factory) -> Path:
    window = replace(TINY_WINDOW, num_retained_tokens=M, decision_interval=3)
    return make_adapter(tmp_path_factory.mktemp("scored") / "adapter", tiny.base, window)


def test_suites_with_the_models_own_number_of_tokens(tiny, scored, tmp_path) -> None:
    flags = ["--model", scored, "--data", tiny.held_out, "--output", tmp_path / "eval", *SMALL]
    done = launch("run_eval.py", *flags)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "eval/report.json").read_text())
    heldout = report["heldout"]
    assert list(heldout["ppl"]) == DEFAULT and heldout["recovered"].keys() == set(DEFAULT) - {"full", "window"}
    assert heldout["window"]["lossless_budget"] == TINY_WINDOW.lossless_budget
    assert heldout["past_largest_budget"]["first_position"] == TINY_WINDOW.lossless_budget + M + 2
    assert list(report["needles"]["variants"]) == DEFAULT
    retained, alone = DEFAULT[-2:]
    rows = [*DEFAULT[:-1], f"foreign_{retained}", alone, "foreign"]
    assert list(report["absorbed"]["variants"]) == rows and alone == "ahn"
    assert [context["variant"] for context in report["efficiency"]["contexts"]] == DEFAULT
    assert len({report["needles"]["variants"][v]["evicted"]["log_prob"] for v in DEFAULT}) == len(DEFAULT)
    page = (tmp_path / "eval/report.html").read_text()
    assert "window wider by 6" in page and "window + 6 chosen + AHN" in page and "Kept in each layer" in page


def test_the_number_of_the_default_variants_can_be_chosen(tiny, scored, tmp_path) -> None:
    small = ["--data", tiny.held_out, "--max_documents", 1, "--suites", "heldout", "--pieces_per_document", 1]
    for number, variants in ((3, ["full", "window", "wider3", "retained3", "retained3_ahn", "ahn"]), (0, None)):
        output = tmp_path / str(number)
        done = launch("run_eval.py", "--model", scored, "--output", output, *small, "--num_retained_tokens", number)
        assert done.returncode == 0, done.stderr
        measured = list(json.loads((output / "report.json").read_text())["heldout"]["ppl"])
        assert measured == variants or (variants is None and "memory_off" in measured and "ahn" in measured)


def test_a_number_that_cannot_be_is_a_line(tiny, scored, refused, tmp_path) -> None:
    flags = ("--output", tmp_path / "out", "--suites", "needles", "--num_retained_tokens")
    for model, more, words in (
        (tiny.adapter, (3,), ("--num_retained_tokens 3: ", "has no fitted scorer", "--window.retained 3")),
        (tiny.base, (3, "--num_sink_tokens", 4, "--window_size", 9), ("--num_retained_tokens 3: ", "plain base")),
        (scored, (3, "--variants", "full"), ("--num_retained_tokens 3 goes with", "retained64_ahn")),
        (scored, (-3,), ("--num_retained_tokens: must be >= 0, found -3",)),
    ):
        message = refused("run_eval.py", "--model", model, *flags, *more)
        assert all(word in message for word in words), message


def test_other_numbers_and_choices_of_any_model(tiny, tmp_path) -> None:
    variants = ["wider3", "random3", "random9", "received9", "oracle3"]
    flags = ["--model", tiny.base, "--num_sink_tokens", 4, "--window_size", 12, "--data", tiny.held_out]
    flags += ["--output", tmp_path / "eval", "--max_documents", 2, "--variants", "full", "window", *variants]
    done = launch("run_eval.py", *flags, "--suites", "heldout")
    assert done.returncode == 0, done.stderr
    heldout = json.loads((tmp_path / "eval/report.json").read_text())["heldout"]
    assert list(heldout["kl"]) == ["window", *variants] and heldout["controls"] == {}
    assert heldout["past_largest_budget"]["first_position"] == 16 + 9
    again = launch("run_eval.py", *flags, "--suites", "heldout", "--seed", 1)
    assert again.returncode == 2 and "evaluation with seed 0, this one has 1" in again.stderr


def test_what_cannot_be_measured_is_a_line_before_the_model_is_loaded(tiny, scored, tmp_path) -> None:
    for model, variant, words in (
        (tiny.adapter, "retained64", ("--variants retained64", "--train.loss retention")),
        (scored, "oracle6", ("--variants oracle6", "add heldout")),
        (scored, "wider500", ("300 tokens, and --variants wider500 keeps 518", "--allow_no_evictions")),
    ):
        flags = ("--suites", "needles", "--needles.lengths", 300, "--variants", "window", variant)
        done = launch("run_eval.py", "--model", model, "--output", tmp_path / "out", *flags)
        assert done.returncode == 2 and all(word in done.stderr for word in words), done.stderr
        assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1 and not (tmp_path / "out").exists()
