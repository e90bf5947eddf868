"""lm-eval's requests and the window: nothing is cut for a model that has one, and what was evicted is told."""

import pytest
import torch
import torch.distributed as dist
from lm_eval.api.instance import Instance

from pipeline.evaluation.lm_eval_counts import RequestCounts, describe_run
from pipeline.evaluation.lm_eval_model import HippocampusLM
from pipeline.evaluation.lm_eval_run import table_below_evictions
from pipeline.model.loading import load_model
from tests.tiny_models import TINY_WINDOW


def generation(text, task):
    return Instance("generate_until", {}, (text, {"until": [], "max_gen_toks": 2}), 0, metadata=(task, 0, 1))


def test_a_window_cuts_no_prompt_and_full_attention_says_what_it_cannot_do(folder, tokenizer, caplog):
    """The base has 1,024 positions, and the book is longer."""
    book = "def test(tmp_path): the session is a folder with tokens, and its scope is json." * 36
    with_memory = load_model(str(folder / "adapter"), dtype=torch.float32).eval()
    length = len(tokenizer(book).input_ids)
    requests = [generation(book, "long"), generation("a", "other")]
    lm = HippocampusLM(with_memory, tokenizer)
    lm.generate_until(requests, disable_tqdm=True)
    lm.loglikelihood([Instance("loglikelihood", {}, (book, " json"), 0, metadata=("choice", 0, 1))], disable_tqdm=True)
    lm.loglikelihood_rolling([Instance("loglikelihood_rolling", {}, (book,), 0, metadata=("whole", 0, 1))])
    info = lm.get_model_info()
    evicted = length - TINY_WINDOW.lossless_budget
    answer = len(tokenizer(" json", add_special_tokens=False).input_ids)
    assert length > 1024 and info["max_length"] == "whole prompts" and info["num_truncated"] == {}
    found = {task: of_task["max"] for task, of_task in info["evicted"].items()}
    assert found == {"long": evicted, "other": 0, "choice": evicted + answer - 1, "whole": evicted}
    lines = table_below_evictions(lambda *_: "table", {"config": info}).splitlines()
    assert lines[-1] == "table" == table_below_evictions(lambda *_: "table", {"config": {}})  # of another model
    assert table_below_evictions(lambda *_: "table", {"config": info}, "groups") == "table"
    assert lines[0].startswith("long: By the end of its prompt, sinks + window have evicted")
    assert f" {evicted:,} to {evicted:,} tokens" in lines[0]
    assert lines[1].startswith("other: NOTHING WAS EVICTED") and "NOTHING" not in caplog.text
    lm.generate_until(requests[1:], disable_tqdm=True)
    assert "NOTHING WAS EVICTED" in caplog.text  # before they are read

    base = load_model(str(folder / "base"), dtype=torch.float32).eval()
    cut, beyond = HippocampusLM(base, tokenizer), HippocampusLM(base, tokenizer, max_length=length + 2)
    for full in (cut, beyond):
        full.generate_until(requests, disable_tqdm=True)
    info = cut.get_model_info()
    assert info["max_length"] == info["positions"] == 1024 and info["evicted"] is None
    assert "1 of 2 requests lost part of their context to max_length = 1,024" in describe_run(info)
    info = beyond.get_model_info()
    assert info["num_truncated"] == {} and info["num_beyond_positions"] == {"long": 1}
    assert "1 of 2 requests are longer than the 1,024 positions" in describe_run(info)
    base.config.rope_parameters |= {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024}
    assert HippocampusLM(base, tokenizer).max_length == 4096


@pytest.mark.parametrize("evicted_elsewhere", [0, 7])
def test_of_several_processes_all_requests_count_before_nothing_is_said_to_be_evicted(
    folder, tokenizer, caplog, monkeypatch, evicted_elsewhere
):
    other = RequestCounts()
    monkeypatch.setattr(dist, "all_gather_object", lambda counts, own: counts.__setitem__(slice(None), [own, other]))
    lm = HippocampusLM(load_model(str(folder / "adapter"), dtype=torch.float32).eval(), tokenizer)
    lm._world_size = 2
    lm.generate_until([generation("a", "task")], disable_tqdm=True)
    assert "NOTHING" not in caplog.text, "this process alone cannot tell"
    other.evicted["task", evicted_elsewhere] += 1
    lm.barrier()
    assert ("NOTHING WAS EVICTED" in caplog.text) == (evicted_elsewhere == 0)
    caplog.clear()
    lm.barrier()
    assert caplog.text == "", "of no requests there is nothing to say"
