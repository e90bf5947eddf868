"""LV-Eval and InfiniteBench as suites of the evaluation: prompts, limits, scores and tables, on a tiny model."""

import json
from dataclasses import replace

import pytest
import torch
from transformers import AutoTokenizer

from pipeline.attention.window import WindowSpec
from pipeline.config import EvalConfig
from pipeline.data.shard_format import DataError
from pipeline.errors import UserError
from pipeline.evaluation.infinitebench.tasks import INFINITEBENCH
from pipeline.evaluation.long_context.evaluation import BenchmarkSuite
from pipeline.evaluation.long_context.scores import summarise_scores
from pipeline.evaluation.long_context.sections import make_section
from pipeline.evaluation.long_context.truncation import SEAM_TOKENS
from pipeline.evaluation.lveval.tasks import LVEVAL
from pipeline.evaluation.published import averages_table, protocol_table
from pipeline.evaluation.reader import Reader
from pipeline.evaluation.suite import EvaluationInputs
from pipeline.model.files import resolve_model
from pipeline.model.loading import load_model
from tests.tiny_models import TINY_WINDOW

CONTEXT = 1024  # of the tiny base
ENGLISH = ["factrecall_en_16k", "factrecall_en_32k"]
BOOK = "def test(tmp_path): the session is a folder with tokens. " * 60  # more tokens than fit


@pytest.fixture(scope="module")
def adapter(folder):
    return folder / "adapter"


@pytest.fixture(scope="module")
def readers(adapter):
    model = load_model(str(adapter), dtype=torch.float32).eval()
    return {name: Reader(model, name, TINY_WINDOW, 256, 2.0) for name in ("full", "full_yarn", "window", "ahn")}


@pytest.fixture
def inputs(adapter, tmp_path):
    def make(variants=("full", "ahn"), tokenizer=None, **settings):
        settings = {"data_root": tmp_path, "yarn_factor": 2.0, "suites": ["lveval"]} | settings
        config = EvalConfig(model=adapter, output=tmp_path / "out", **settings)
        files = resolve_model(adapter, None)
        tokenizer = tokenizer or AutoTokenizer.from_pretrained(files.tokenizer)
        return EvaluationInputs(config, files, files.window, variants, tokenizer, [], None)

    return make


def lveval_row(context, answer="a"):
    return {"context": context, "input": "Who is it?", "answers": [answer], "answer_keywords": None}


def write(root, suite, task, *rows):
    (root / suite).mkdir(exist_ok=True)
    (root / suite / f"{task}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def measure(suite, readers):
    return {u.key: suite.measure(u, {v: readers[v] for v in u.variants}) for u in suite.units()}


def test_answers_are_scored_and_long_prompts_lose_their_middle(tmp_path, inputs, readers):
    write(tmp_path, "lveval", ENGLISH[0], lveval_row("short"), {"context": 3}, lveval_row(BOOK), lveval_row("after"))
    write(tmp_path, "lveval", ENGLISH[1], lveval_row("other"))
    given = inputs(tasks=["factrecall_en_??k"], max_examples=2)  # 16k, 32k and 64k
    with pytest.raises(UserError, match=r"lacks LV-Eval's factrecall_en_64k .*--fetch lveval --data_root"):
        BenchmarkSuite("lveval", given)
    given = inputs(tasks=ENGLISH, max_examples=2, max_context=CONTEXT)
    suite = BenchmarkSuite("lveval", given)
    keys = [unit.key for unit in suite.units()]
    examples = (f"{ENGLISH[0]}/1", f"{ENGLISH[0]}/3", f"{ENGLISH[1]}/1")
    orders = (("full", "ahn"), ("ahn", "full"), ("full", "ahn"))  # so that two ranks share full attention's work
    assert keys == [f"{e}/{v}" for e, order in zip(examples, orders, strict=True) for v in order]
    first = measure(suite, readers)
    room = CONTEXT - 16 - SEAM_TOKENS
    for variant in ("full", "ahn"):
        short, cut = (first[f"{ENGLISH[0]}/{line}/{variant}"] for line in (1, 3))
        assert not short["truncated"] and cut["truncated"]
        assert room - 2 <= cut["prompt_tokens"] <= room + SEAM_TOKENS and short["prompt_tokens"] < 200
        assert all(r["evicted"] == r["prompt_tokens"] - TINY_WINDOW.lossless_budget > 0 for r in (short, cut))
    said = [first[f"{ENGLISH[0]}/{line}/full"]["answer"] for line in (1, 3)]
    assert all(said) and said[0] != first[f"{ENGLISH[0]}/1/ahn"]["answer"]  # the memory acts

    # What full attention says becomes the right answer.
    write(tmp_path, "lveval", ENGLISH[0], lveval_row("short", said[0]), {"context": 3}, lveval_row(BOOK, "no such"))
    again = BenchmarkSuite("lveval", given)
    assert again.settings["context"] == suite.settings["context"] == CONTEXT
    assert again.settings["data"] != suite.settings["data"]
    records = {unit.key: again.measure(unit, readers) for unit in reversed(again.units())}  # in any order
    assert {key: record["answer"] for key, record in records.items()} == {
        key: record["answer"] for key, record in first.items()
    }
    summary = json.loads(json.dumps(again.summarise(records), allow_nan=False))
    task = summary["tasks"][ENGLISH[0]]
    assert (task["examples"], task["truncated"], summary["bad_rows"][ENGLISH[0]]) == (2, 1, 1)
    assert task["scores"]["full"]["score"] == 50.0 and task["scores"]["full"]["ci95"] is None  # of two
    assert summary["tasks"][ENGLISH[1]]["scores"]["full"]["ci95"] is None
    assert [summary["lengths"][length]["full"]["score"] for length in ("16k", "32k")] == [50.0, 0.0]
    assert summary["sets"]["factrecall_en"] == summary["average"] and summary["average"]["full"]["score"] == 25.0
    assert summary["average"]["ahn"]["over_window"] is summary["average"]["ahn"]["ci95"] is None  # no window; of two
    (section,) = again.sections(summary, records)
    averages, by_task, published, protocol = section.tables
    assert averages.header == ("", "full", "sinks + window + AHN")
    assert [row[:2] for row in averages.rows] == [
        ["16k, mean of sets", "50.00"],
        ["32k, mean of sets", "0.00"],
        ["factrecall_en, mean of lengths", "25.00"],
        ["mean of 2 tasks", "25.00"],
    ]
    evicted = task["evicted"]
    assert by_task.rows[0][:4] == [ENGLISH[0], "f1", "2", "1"]
    assert by_task.rows[0][5:8] == [f"{evicted['mean']:,.0f}", "100%", "50.00"]
    lengths = [first[f"{ENGLISH[0]}/{line}/full"]["prompt_tokens"] for line in (1, 3)]
    expected = [n - TINY_WINDOW.lossless_budget for n in lengths]
    assert evicted == {"min": min(expected), "mean": sum(expected) / 2, "max": max(expected), "share": 1.0}
    assert protocol == protocol_table("lveval") and protocol.rows[1][1].startswith("256,000 tokens at most")
    assert published == averages_table("lveval") and published.rows[0] == ["full attention", "4.41", "3.62", "4.99"]
    assert "1,024 tokens" in section.lead and "1 longer prompts" in section.lead and "1 rows of" in section.lead


def test_generation_goes_on_from_the_prompt_as_the_official_code_tokenises_it(tmp_path, inputs, readers):
    write(
        tmp_path, "infinitebench", "passkey", {"context": "sand " * 40, "input": "Key?", "answer": ["7"], "options": []}
    )
    given = inputs(suites=["infinitebench"], tasks=["passkey"], variants=("window",))
    suite = BenchmarkSuite("infinitebench", given)
    (record,) = measure(suite, readers).values()
    (task,) = (task for task in INFINITEBENCH.tasks if task.name == "passkey")
    row = {"context": "sand " * 40, "input": "Key?", "answer": ["7"]}
    tokens = given.tokenizer(task.read_row("passkey/1", "passkey", row).prompt).input_ids
    reader = readers["window"]
    expected = reader.generate(tokens, reader.new_cache(), task.max_new_tokens)
    assert record["answer"] == given.tokenizer.decode(expected) and record["prompt_tokens"] == len(tokens)
    (section,) = suite.sections(suite.summarise({"passkey/1/window": record}), {})
    assert section.tables[0].rows == [["mean of 1 task", "0.00"]] and "ROUGE" in section.note
    assert section.tables[-1].rows[0][1] == "longbook_qa_eng, longbook_qa_chn"


def test_prompts_are_whole_and_full_attention_says_what_it_cannot_do(tmp_path, inputs, readers):
    """The base has 1,024 positions; the window needs no more, and YaRN brings twice as many."""
    half = BOOK[: len(BOOK) // 2]
    write(tmp_path, "lveval", ENGLISH[0], lveval_row(half), lveval_row("short"), lveval_row(BOOK))
    suite = BenchmarkSuite("lveval", inputs(("window", "full", "full_yarn"), tasks=ENGLISH[:1]))
    records = measure(suite, {**readers, "full_yarn": readers["window"]})  # what it answers does not matter here
    tokenizer = inputs().tokenizer
    (task,) = (task for task in LVEVAL.tasks if task.name == ENGLISH[0])
    for line, context in ((1, half), (2, "short"), (3, BOOK)):
        prompt = task.read_row("", task.name, lveval_row(context)).prompt
        found = {records[f"{ENGLISH[0]}/{line}/{v}"]["prompt_tokens"] for v in ("window", "full", "full_yarn")}
        assert found == {len(tokenizer(prompt).input_ids)}
    summary = suite.summarise(records)
    assert suite.settings["context"] is summary["context"] is None
    assert summary["beyond_positions"] == {
        "full": {"positions": CONTEXT, "prompts": 2, "of": 3},
        "full_yarn": {"positions": 2 * CONTEXT, "prompts": 1, "of": 3},
    }
    (section,) = suite.sections(summary, records)
    marked = ("sinks + window", "full (past its 1,024 positions)", "full, YaRN (past its 2,048 positions)")
    assert section.tables[0].header[1:] == marked and section.tables[2].header[-3:] == marked
    assert "full: 2 of 3 prompts with their answers are longer than the 1,024 positions" in section.lead
    assert "prompt, whole." in section.lead
    few = BenchmarkSuite("lveval", inputs(("window", "full"), tasks=ENGLISH[:1], max_context=CONTEXT))
    assert few.summarise(measure(few, readers))["beyond_positions"] == {}


def test_prompts_that_evict_nothing_are_refused_unless_asked_for(tmp_path, inputs, readers):
    write(tmp_path, "lveval", ENGLISH[0], lveval_row("short"), lveval_row("shorter"))

    def make(window, variants=("full", "window"), **settings):
        given = inputs(variants, tasks=ENGLISH[:1], **settings)
        return BenchmarkSuite("lveval", replace(given, window=window))

    (longest,) = {max(r["prompt_tokens"] for r in measure(make(TINY_WINDOW), readers).values())}
    make(WindowSpec(4, longest - 5))  # evicts one
    with pytest.raises(
        UserError, match=rf"--suites lveval: the longest prompt has {longest} tokens, and .* keep {longest}:"
    ):
        make(WindowSpec(4, longest - 4))
    with pytest.raises(UserError, match=r"--suites lveval --max_context 60: the longest .*--allow_no_evictions$"):
        make(WindowSpec(4, 60), max_context=60)
    make(WindowSpec(4, longest), variants=("full", "full_yarn"))  # nothing here has a window
    asked = make(WindowSpec(4, longest), allow_no_evictions=True)
    assert {record["evicted"] for record in measure(asked, readers).values()} == {0}


def test_a_chat_template_wraps_the_prompt_and_takes_its_room(tmp_path, inputs, readers):
    write(tmp_path, "lveval", ENGLISH[0], lveval_row("short"), lveval_row(BOOK))
    given = inputs(("window",), tasks=ENGLISH[:1], chat=True, max_context=CONTEXT)
    with pytest.raises(UserError, match=r"--chat: the tokenizer .* has no chat template"):
        BenchmarkSuite("lveval", given)
    before, after = "[user]" + "-" * 30, "[assistant]"
    template = f"{{% for m in messages %}}{before}{{{{ m.content }}}}{{% endfor %}}{after}"
    given.tokenizer.chat_template = template
    settings = {"tasks": ENGLISH[:1], "max_context": CONTEXT}
    plain, chat = (
        measure(BenchmarkSuite("lveval", inputs(("window",), given.tokenizer, chat=c, **settings)), readers)
        for c in (False, True)
    )
    tokenizers = [AutoTokenizer.from_pretrained(given.files.tokenizer) for _ in range(2)]
    for tokenizer, version in zip(tokenizers, (template, template + "!"), strict=True):
        tokenizer.chat_template = version
    same, other = (
        BenchmarkSuite("lveval", inputs(("window",), tokenizer, tasks=ENGLISH[:1], chat=True)).settings
        for tokenizer in tokenizers
    )
    assert same != other and same | {"around_prompts": 0} == other | {"around_prompts": 0}
    template_tokens = len(given.tokenizer(before + after, add_special_tokens=False).input_ids)
    short, cut = (chat[key]["prompt_tokens"] - plain[key]["prompt_tokens"] for key in plain)
    assert short == pytest.approx(template_tokens - 1, abs=4)  # without the token that begins a text
    assert abs(cut) <= SEAM_TOKENS


def summarise(benchmark, tasks, scores):
    """`scores`: by task and variant, of each example."""
    of_all = {"answer": "", "truncated": False, "prompt_tokens": 9, "evicted": 1, "seconds": 1.0}
    records = {
        f"{task}/{i}/{variant}": {**of_all, "score": score}
        for task, of_task in scores.items()
        for variant, of_variant in of_task.items()
        for i, score in enumerate(of_variant)
    }
    variants = tuple(scores[tasks[0].name])
    summary = summarise_scores(benchmark.name, tasks, variants, dict(sorted(records.items(), reverse=True)))
    return {**summary, "chat": False, "context": 9, "bad_rows": {}, "beyond_positions": {}}


def test_intervals_stay_between_no_score_and_all_of_it():
    task = INFINITEBENCH.tasks[0]

    def shown(*scores):
        section = make_section(INFINITEBENCH, summarise(INFINITEBENCH, [task], {task.name: {"full": scores}}))
        return section.tables[0].rows[0][-1], section.tables[1].rows[0][-1]

    assert shown(0.0, 1.0, 0.5) == ("50.00 (0.00 to 100.00)", "50.00 (0.00 to 100.00)")
    assert shown(0.0, 0.0, 0.0) == ("0.00 (0.00 to 70.76)",) * 2  # Clopper-Pearson, 0 of 3


def test_averages_are_compared_with_the_windows_example_by_example():
    tasks = [task for task in LVEVAL.tasks if task.name in ENGLISH]
    hard = [0.1 + 0.1 * (i % 8) for i in range(20)]  # how hard an example is moves all alike
    better, worse = ([score + sign * (0.05 + 0.01 * (i % 2)) for i, score in enumerate(hard)] for sign in (1, -1))
    uneven, equal = {"full": worse, "window": hard, "ahn": better}, dict.fromkeys(("full", "window", "ahn"), [0.5] * 4)
    summary = summarise(LVEVAL, tasks, {ENGLISH[0]: uneven, ENGLISH[1]: equal})
    ahn, window = (summary["average"][variant] for variant in ("ahn", "window"))
    base = 100 * sum(hard) / 20
    assert ahn["over_window"] == pytest.approx(5.5 / 2) and ahn["score"] == pytest.approx((base + 5.5 + 50) / 2)
    low, high = ahn["over_window_ci95"]
    assert 2.5 < low < 2.75 < high < 3.0 and window["ci95"][1] - window["ci95"][0] > 5
    assert window["over_window"] is window["over_window_ci95"] is None
    full = summary["average"]["full"]
    assert full["over_window"] == pytest.approx(-5.5 / 2) and full["over_window_ci95"] == pytest.approx(
        [-high, -low], abs=0.02
    )
    assert summary["lengths"]["32k"]["ahn"]["over_window"] == 0.0
    assert summary["lengths"]["32k"]["ahn"]["over_window_ci95"] is None
    means, over, by_task, *_ = make_section(LVEVAL, summary).tables
    assert over.header == ("", "full", "sinks + window + AHN")
    assert over.rows[-1][::2] == ["mean of 2 tasks", f"+2.75 ({low:+.2f} to {high:+.2f})"]
    assert over.rows[1] == ["32k, mean of sets", "+0.00", "+0.00"]
    assert by_task.rows[1][7:] == means.rows[1][1:] == ["50.00 (6.76 to 93.24)"] * 3
    both = {ENGLISH[0]: uneven, ENGLISH[1]: uneven}
    (low, high), (low_alone, high_alone) = (
        found["average"]["window"]["ci95"]
        for found in (summarise(LVEVAL, tasks, both), summarise(LVEVAL, tasks[:1], {ENGLISH[0]: uneven}))
    )
    assert high - low < 0.8 * (high_alone - low_alone)  # tasks are drawn apart


def test_what_cannot_be_run_is_one_line(tmp_path, inputs):
    def refused(name="lveval", **settings):
        with pytest.raises(UserError) as caught:
            BenchmarkSuite(name, inputs(**settings))
        return str(caught.value)

    assert refused(data_root=None).endswith(
        "get them with: python launchers/run_eval.py --fetch lveval --data_root ROOT"
    )
    assert refused(tasks=["passkey"]).startswith(
        "--tasks passkey: no such task of lveval; they are hotpotwikiqa_mixup_16k"
    )
    both = ["lveval", "infinitebench"]
    assert refused(tasks=["passkey"], suites=both).endswith("none is LV-Eval's; leave lveval out of --suites")
    assert "no such task of lveval or infinitebench; they are" in refused(tasks=["passkey", "x"], suites=both)
    assert "and 49 more" in refused() and f"--fetch lveval --data_root {tmp_path}" in refused()
    assert refused("infinitebench", suites=both, max_context=CONTEXT).startswith(
        "--max_context 1024: longbook_sum_eng generates up to 1,200 tokens, so it has no room"
    )
    write(tmp_path, "lveval", ENGLISH[0], {})
    with pytest.raises(DataError, match="has no row of factrecall_en_16k"):
        BenchmarkSuite("lveval", inputs(tasks=ENGLISH[:1]))
