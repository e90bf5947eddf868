"""Our models under lm-eval: equal to its own class on the base, documents read once, truncation counted."""

import json
import subprocess
import sys
from pathlib import Path

import lm_eval.tasks
import pytest
import torch
from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from transformers import AutoTokenizer

from pipeline.attention.window import WindowSpec
from pipeline.errors import UserError
from pipeline.evaluation.lm_eval_counts import describe_run
from pipeline.evaluation.lm_eval_harness import run_lm_eval
from pipeline.evaluation.lm_eval_loading import Tasks
from pipeline.evaluation.lm_eval_model import HippocampusLM
from pipeline.model.loading import load_model, set_window
from tests.tiny_models import TINY_WINDOW

WHOLE = WindowSpec(num_sink_tokens=4, window_size=2000)  # nothing is evicted
BOOK = "def test(tmp_path): the session is a folder with tokens, and its scope is json." * 3
QUESTIONS = (" Who is it?", " What for? It", " Where?", " Who is in it?")
TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}{% if add_generation_prompt %}[a]{% endif %}"
)


@pytest.fixture(scope="module")
def folders(folder):
    return folder / "base", folder / "adapter"


@pytest.fixture(scope="module")
def index():
    """lm-eval's tasks that are used here; its index of all takes seconds."""
    folder = Path(lm_eval.tasks.__file__).parent
    return Tasks(
        include_path=[folder / name for name in ("longbench", "longbench2", "infinitebench")], include_defaults=False
    )


@pytest.fixture(scope="module")
def tokenizer(folders):
    return AutoTokenizer.from_pretrained(folders[0])


def adapted(folders, dtype, window=TINY_WINDOW):
    model = load_model(str(folders[1]), dtype=torch.float32).to(dtype).eval()
    set_window(model, window)
    return model


def generation(text, task="toy", **kwargs):
    asked = {"until": [], "max_gen_toks": 12, **kwargs}
    return Instance("generate_until", {}, (text, asked), 0, metadata=(task, 0, 1))


def choice(text, answer, task="toy"):
    return Instance("loglikelihood", {}, (text, answer), 0, metadata=(task, 0, 1))


def ask(lm, request):
    (answer,) = getattr(lm, request.request_type)([request], disable_tqdm=True)
    return answer


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def toy_tasks(tmp_path):
    """LongBench's hotpotqa (generation) and LongBench-v2's detective (choices) on rows of this machine."""
    hotpot = [
        {"context": BOOK, "question": question, "answers": ["the session"], "all_classes": []} for question in QUESTIONS
    ]
    detective = [
        {"context": BOOK, "question": question, "choices": ["json", "a folder", "scope", "tmp"], "answer": i}
        for i, question in enumerate(QUESTIONS)
    ]
    tasks = {"longbench_hotpotqa": ("test", hotpot), "longbench2_detective": ("train", detective)}
    return [
        {
            "task": name,
            "dataset_path": "json",
            "dataset_name": None,
            "dataset_kwargs": {
                "data_files": {split: str(write_rows(tmp_path / f"{name}.jsonl", rows))},
                "cache_dir": str(tmp_path / "cache"),
            },
        }
        for name, (split, rows) in tasks.items()
    ]


@pytest.mark.slow
def test_equals_lm_evals_own_class_while_nothing_is_evicted(folders, tokenizer, toy_tasks, index):
    base = load_model(str(folders[0]), dtype=torch.float64).eval()
    own = HFLM(base, tokenizer=tokenizer, backend="causal")
    theirs = simple_evaluate(own, tasks=[{"group": "toy", "task": toy_tasks}], task_manager=index, bootstrap_iters=0)
    model = adapted(folders, torch.float64, WHOLE)
    ours = run_lm_eval(model, tokenizer, toy_tasks, prefill_chunk=32, bootstrap_iters=0)
    assert ours["results"].keys() == {"longbench_hotpotqa", "longbench2_detective"}
    for task, scores in ours["results"].items():
        measured = {name: value for name, value in scores.items() if "," in name}
        assert measured and measured.items() <= theirs["results"][task].items()
    texts = [[s["resps"] for s in r["samples"]["longbench_hotpotqa"]] for r in (ours, theirs)]
    assert texts[0] == texts[1] and all(text[0][0] for text in texts[0])
    for mine, other in zip(*(r["samples"]["longbench2_detective"] for r in (ours, theirs)), strict=True):
        for (mine_value,), (other_value,) in zip(mine["resps"], other["resps"], strict=True):
            assert float(mine_value[0]) == pytest.approx(float(other_value[0]), rel=1e-9)
            assert mine_value[1] == other_value[1]
    assert ours["truncation"] == {
        "longbench_hotpotqa": {"requests": 4, "truncated": 0},
        "longbench2_detective": {"requests": 16, "truncated": 0},
    }
    assert ours["config"]["window"] == str(WHOLE) and ours["config"]["prefill_chunk"] == 32
    nothing = {"min": 0, "mean": 0.0, "max": 0, "share": 0.0}
    assert ours["config"]["evicted"] == dict.fromkeys(ours["results"], nothing)
    assert describe_run(ours["config"]).startswith("NOTHING WAS EVICTED: ")


REQUESTS = [
    *(generation(BOOK + question) for question in QUESTIONS),
    generation(BOOK + QUESTIONS[0]),
    generation(BOOK[:100] + QUESTIONS[1]),  # leaves the book in its middle
    generation("Another."),
]
CHOICES = [
    *(choice(BOOK + question, f" {answer}") for question in QUESTIONS for answer in ("json", "a longer folder", "b")),
    choice(BOOK[:100] + QUESTIONS[1], " scope"),
    choice(BOOK, " json b"),
    choice(BOOK + " json", " c"),  # reads the same tokens as the one before, and scores fewer of them
    choice("", BOOK),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("requests", [REQUESTS, CHOICES], ids=["generate", "loglikelihood"])
@pytest.mark.parametrize("with_memory", [True, False], ids=["ahn", "base"])
def test_sharing_a_document_changes_no_bit_and_reads_it_once(folders, tokenizer, dtype, requests, with_memory):
    model = adapted(folders, dtype) if with_memory else load_model(str(folders[0]), dtype=dtype).eval()
    num_read = []
    model.get_decoder().register_forward_pre_hook(
        lambda _, args, kwargs: num_read.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    lm = HippocampusLM(model, tokenizer, prefill_chunk=8)
    alone = [ask(lm, request) for request in requests]
    read_alone = sum(num_read)
    num_read.clear()
    assert getattr(lm, requests[0].request_type)(requests, disable_tqdm=True) == alone
    assert sum(num_read) < 0.5 * read_alone
    assert len(set(alone)) > len(requests) // 2


@torch.no_grad()
def test_answers_are_those_of_the_whole_text_with_a_memory_that_acts(folders, tokenizer):
    model = adapted(folders, torch.float64)
    lm = HippocampusLM(model, tokenizer, prefill_chunk=8)
    values = lm.loglikelihood(CHOICES, disable_tqdm=True)
    texts = lm.generate_until(REQUESTS, disable_tqdm=True)
    without_memory = 0
    for request, (value, greedy) in zip(CHOICES, values, strict=True):
        context, answer = request.args
        ids = tokenizer(context + answer, return_tensors="pt").input_ids
        num = ids.shape[1] - (len(tokenizer(context).input_ids) if context else 1)
        for use_memory in (True, False):
            logits = model(ids, use_cache=False, use_memory=use_memory).logits[0, -num - 1 : -1]
            expected = logits.log_softmax(-1).gather(-1, ids[0, -num:, None]).sum()
            if use_memory:
                assert value == pytest.approx(float(expected), rel=1e-9)
                assert greedy == bool((logits.argmax(-1) == ids[0, -num:]).all())
            else:
                without_memory += abs(value - float(expected)) > 1e-2
    assert without_memory == len(CHOICES)
    for request, text in zip(REQUESTS, texts, strict=True):
        ids = tokenizer(request.args[0], return_tensors="pt").input_ids
        for _ in range(12):
            best = model(ids, use_cache=False).logits[0, -1].argmax()
            ids = torch.cat([ids, best[None, None]], 1)
            if best == tokenizer.eos_token_id:
                break
        new = ids[0, len(tokenizer(request.args[0]).input_ids) :]
        assert text == tokenizer.decode(new, skip_special_tokens=True)


def test_a_rolling_request_is_the_sum_over_its_windows(folders, tokenizer):
    text = (BOOK * 2)[:300]
    request = Instance("loglikelihood_rolling", {}, (text,), 0, metadata=("toy", 0, 1))
    base = load_model(str(folders[0]), dtype=torch.float64).eval()
    own = HFLM(base, tokenizer=tokenizer, backend="causal", max_length=50)
    lm = HippocampusLM(adapted(folders, torch.float64, WHOLE), tokenizer, prefill_chunk=16, max_length=50)
    assert ask(lm, request) == pytest.approx(ask(own, request), rel=1e-9)
    whole = HippocampusLM(adapted(folders, torch.float64, WHOLE), tokenizer, prefill_chunk=16)
    assert ask(whole, request) != pytest.approx(ask(lm, request), rel=1e-3)
    assert lm.counts.requests == {"toy": 2} and not lm.counts.truncated


def test_stop_strings_and_sampling_are_lm_evals(folders, tokenizer):
    model, base = adapted(folders, torch.float64, WHOLE), load_model(str(folders[0]), dtype=torch.float64).eval()
    lm, own = HippocampusLM(model, tokenizer), HFLM(base, tokenizer=tokenizer, backend="causal")
    text = ask(lm, generation(BOOK))
    stopped = ask(lm, generation(BOOK, until=[text[3:5]]))
    assert stopped == text.split(text[3:5])[0] == ask(own, generation(BOOK, until=[text[3:5]]))
    assert len(tokenizer(ask(lm, generation(BOOK, max_gen_toks=3))).input_ids) < len(tokenizer(text).input_ids)
    sampled = []
    for each in (lm, lm, own):
        torch.manual_seed(5)
        sampled.append(ask(each, generation(BOOK, do_sample=True, temperature=1.5)))
    assert sampled[0] == sampled[1] == sampled[2] != text


def test_chat_template_wraps_the_prompt(folders, tokenizer, toy_tasks, index):
    tasks = list(index.load(toy_tasks[:1])["tasks"].values())
    chatting = AutoTokenizer.from_pretrained(folders[0])
    chatting.chat_template = TEMPLATE
    model = adapted(folders, torch.float32)
    results = run_lm_eval(model, chatting, tasks, apply_chat_template=True, limit=1, bootstrap_iters=0)
    (sample,) = results["samples"]["longbench_hotpotqa"]
    prompt = sample["arguments"][0][0]
    assert prompt.startswith("[user]Answer the question") and prompt.endswith("Answer:[a]")
    with pytest.raises(UserError, match="has no chat template"):
        run_lm_eval(model, tokenizer, tasks, apply_chat_template=True)


@torch.no_grad()
@pytest.mark.parametrize(("side", "num_first"), [("middle", 14), ("left", 0)])
def test_long_contexts_are_cut_and_counted_by_task(folders, tokenizer, side, num_first):
    model = adapted(folders, torch.float64)
    lm = HippocampusLM(model, tokenizer, prefill_chunk=8, max_length=40, truncation_side=side)
    requests = [generation(BOOK, "long"), generation("short", "long"), generation("short", "other")]
    long, *_ = lm.generate_until(requests, disable_tqdm=True)
    tokens = tokenizer(BOOK, return_tensors="pt").input_ids
    kept = torch.cat([tokens[:, :num_first], tokens[:, tokens.shape[1] - (28 - num_first) :]], 1)
    output = model.generate(kept, attention_mask=torch.ones_like(kept), max_new_tokens=12, do_sample=False)
    assert long == tokenizer.decode(output[0, 28:], skip_special_tokens=True)
    assert lm.counts.requests == {"long": 2, "other": 1} and lm.counts.truncated == {"long": 1}
    short = len(tokenizer("short").input_ids)
    assert lm.counts.evicted == {
        ("long", 28 - TINY_WINDOW.lossless_budget): 1,
        **{(t, 0): 1 for t in ("long", "other")},
    }
    assert short <= TINY_WINDOW.lossless_budget and lm.counts.evictions()["long"] == {
        "min": 0, "mean": (28 - TINY_WINDOW.lossless_budget) / 2, "max": 28 - TINY_WINDOW.lossless_budget, "share": 0.5
    }  # fmt: skip
    value, _ = lm.loglikelihood([choice(BOOK, " json", "long"), choice("a", " b", "other")], disable_tqdm=True)[0]
    answer = tokenizer(" json", return_tensors="pt", add_special_tokens=False).input_ids
    room = 41 - answer.shape[1]  # the last token is not read
    num_first = num_first and room // 2
    kept = torch.cat([tokens[:, :num_first], tokens[:, tokens.shape[1] - (room - num_first) :], answer], 1)
    log_probs = model(kept, use_cache=False).logits[0, room - 1 : -1].log_softmax(-1)
    assert value == pytest.approx(float(log_probs.gather(-1, answer[0, :, None]).sum()), rel=1e-9)
    assert lm.counts.requests == {"long": 3, "other": 2} and lm.counts.truncated == {"long": 2}


def test_infinitebench_results_are_labelled(folders, tokenizer, tmp_path, index):
    row = {"id": 0, "context": BOOK, "input": "Which?", "answer": ["71432"], "options": []}
    task = {
        "task": "infinitebench_passkey",
        "dataset_path": "json",
        "dataset_kwargs": {
            "data_files": {"passkey": str(write_rows(tmp_path / "passkey.jsonl", [row]))},
            "cache_dir": str(tmp_path / "cache"),
        },
    }
    tasks = list(index.load(task)["tasks"].values())
    results = run_lm_eval(adapted(folders, torch.float32), tokenizer, tasks, bootstrap_iters=0)
    assert results["results"]["infinitebench_passkey"]["alias"] == "infinitebench_passkey (lm-eval's variant)"


def test_mistakes_get_one_line(folders, tokenizer, toy_tasks, tmp_path, index):
    model = adapted(folders, torch.float32)
    with pytest.raises(UserError, match="--tasks longbench_hotpot: lm-eval has no such task"):
        index.load(["longbench_hotpot"])
    toy_tasks[0]["dataset_kwargs"]["data_files"]["test"] = str(tmp_path / "nowhere.jsonl")
    with pytest.raises(UserError, match=r"--tasks longbench_hotpotqa: its data cannot be loaded \(.*nowhere.jsonl"):
        index.load(toy_tasks[:1])
    with pytest.raises(UserError, match="--tasks toy: 64 new tokens leave no room in a context of 50; give a smaller"):
        ask(HippocampusLM(model, tokenizer, max_length=50), generation("a", max_gen_toks=64))
    with pytest.raises(UserError, match=r"--tasks toy: an answer of .* fit a context of 5; give a larger --model_args"):
        ask(HippocampusLM(model, tokenizer, max_length=5), choice("a", BOOK))
    with pytest.raises(UserError, match="--batch_size 8: requests run one at a time"):
        HippocampusLM(model, tokenizer, batch_size=8)
    with pytest.raises(UserError, match="truncation_side=right: must be middle or left"):
        HippocampusLM(model, tokenizer, truncation_side="right")


@pytest.mark.slow
def test_the_command_line_knows_the_model(folders, toy_tasks, tmp_path):
    _, choices = toy_tasks
    inner = {
        "include": str(Path(lm_eval.tasks.__file__).parent / "longbench2/_longbench_common_yaml"),
        **choices,
        "task": "toy",
    }
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks/toy.yaml").write_text(json.dumps(inner))  # JSON is YAML
    command = [sys.executable, "-m", "pipeline.evaluation.lm_eval_run", "--model", "ahn", "--tasks", "toy"]
    command += ["--include_path", tmp_path / "tasks", "--output_path", tmp_path / "out"]
    command += ["--data_root", tmp_path / "data"]  # ours: nothing is looked for on the hub
    command += ["--model_args", f"pretrained={folders[1]},window_size=24,prefill_chunk=16"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr[-2000:]
    (report,) = (tmp_path / "out").rglob("results_*.json")
    written = json.loads(report.read_text())
    assert written["config"]["window"] == str(WindowSpec(TINY_WINDOW.num_sink_tokens, 24))
    assert 0 <= written["results"]["toy"]["acc,none"] <= 1
    evicted = written["config"]["evicted"]["toy"]
    assert evicted["min"] > 100 and evicted["share"] == 1
    told, table = done.stdout.split("toy: By the end of its prompt, sinks + window have evicted", 1)
    assert f"{evicted['max']:,} tokens" in table and "|acc" in table and "|acc" not in told
