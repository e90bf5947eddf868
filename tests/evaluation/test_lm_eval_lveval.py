"""LV-Eval as a group of lm-eval: official prompts, metrics and truncation, on a tiny model."""

import json

import pytest
import torch
from transformers import AutoTokenizer

from pipeline.errors import UserError
from pipeline.evaluation.lm_eval_harness import run_lm_eval
from pipeline.evaluation.lveval.lm_eval_tasks import SEAM_TOKENS, lveval_group
from pipeline.evaluation.lveval.tasks import LVEVAL
from pipeline.model.loading import load_model
from tests.conftest import TINY_VOCAB_SIZE
from tests.tiny_models import make_adapter, make_base

TASKS = ("factrecall_en_16k", "cmrc_mixup_16k")
BOOK = "def test(tmp_path): the session is a folder with tokens. " * 20


@pytest.fixture(scope="module")
def model_and_tokenizer(tmp_path_factory, tiny_tokenizer):
    folder = tmp_path_factory.mktemp("model")
    base = make_base(folder / "base", tiny_tokenizer, TINY_VOCAB_SIZE)
    adapter = make_adapter(folder / "adapter", base)
    return load_model(str(adapter), dtype=torch.float32).eval(), AutoTokenizer.from_pretrained(base)


def write_rows(root, answers):
    (root / "lveval").mkdir()
    for name in TASKS:
        rows = [
            {"context": book, "input": "Who is it?", "answers": [answer], "answer_keywords": None}
            for book, answer in zip(("short", BOOK), answers, strict=True)
        ]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (root / f"lveval/{name}.jsonl").write_text(text + '{"context": 3}\n')


def test_the_group_scores_and_counts_as_the_official_code(tmp_path, model_and_tokenizer, caplog):
    model, tokenizer = model_and_tokenizer
    write_rows(tmp_path, ("a b c", "d"))
    asked = {"prefill_chunk": 64, "bootstrap_iters": 0}
    length = 400  # the Chinese prompt alone takes about 260 of these tokens, one a byte
    answers = {}
    for i in range(2):  # the first run finds what the model says, the second scores that as the right answer
        group = lveval_group(tmp_path, tokenizer, length, tasks=TASKS)
        results = run_lm_eval(model, tokenizer, [group], max_length=length, **asked)
        if i == 0:
            answers = {name: [s["resps"][0][0] for s in results["samples"][f"lveval_{name}"]] for name in TASKS}
            (tmp_path / "lveval").rename(tmp_path / "before")
            write_rows(tmp_path, answers[TASKS[0]])
    assert "1 rows left out, line 3 because 'answers' must be a list" in caplog.text
    assert results["truncation"] == {f"lveval_{name}": {"requests": 2, "truncated": 1} for name in TASKS}
    spec = {task.name: task for task in LVEVAL.tasks}
    for name in TASKS:
        score = results["results"][f"lveval_{name}"]
        assert score[f"{spec[name].metric},none"] == score["score,none"]
        short, cut = results["samples"][f"lveval_{name}"]
        prompts = [s["arguments"][0][0] for s in (short, cut)]
        assert (
            prompts[0]
            == spec[name].read_row("", name, {"context": "short", "input": "Who is it?", "answers": ["a"]}).prompt
        )
        room = length - spec[name].max_new_tokens - SEAM_TOKENS
        assert room - 2 < len(tokenizer(prompts[1]).input_ids) <= room + SEAM_TOKENS
    said = results["results"][f"lveval_{TASKS[0]}"]["score,none"]
    assert said == 1.0
    mean = sum(results["results"][f"lveval_{name}"]["score,none"] for name in TASKS) / 2
    assert results["groups"]["lveval"]["score,none"] == pytest.approx(mean)


def test_a_chat_template_takes_its_room(tmp_path, model_and_tokenizer):
    _, tokenizer = model_and_tokenizer
    write_rows(tmp_path, ("a", "b"))
    tokenizer.chat_template = "{% for m in messages %}[{{ m.role }}]" + "-" * 50 + "{{ m.content }}{% endfor %}"
    plain, chat = (
        lveval_group(tmp_path, tokenizer, 300, tasks=TASKS[:1], apply_chat_template=applied).get(f"lveval_{TASKS[0]}")
        for applied in (False, True)
    )
    lengths = [len(tokenizer(task.test_docs()[1]["prompt"]).input_ids) for task in (plain, chat)]
    taken = len(tokenizer("[user]" + "-" * 50, add_special_tokens=False).input_ids)
    assert taken > 4 and lengths[0] - lengths[1] == pytest.approx(taken, abs=2)


def test_mistakes_get_one_line(tmp_path, model_and_tokenizer):
    _, tokenizer = model_and_tokenizer
    with pytest.raises(UserError, match="--tasks cmrc: LV-Eval has no such task; they are hotpotwikiqa_mixup_16k"):
        lveval_group(tmp_path, tokenizer, 600, tasks=["cmrc"])
    with pytest.raises(UserError, match=r"lacks LV-Eval's hotpotwikiqa_mixup_16k, .*get them with"):
        lveval_group(tmp_path, tokenizer, 600)
    write_rows(tmp_path, ("a", "b"))
    with pytest.raises(UserError, match="cmrc_mixup_16k: a context of 70 tokens leaves no room for its prompt"):
        lveval_group(tmp_path, tokenizer, 70, tasks=TASKS)
