"""Beams on prompts that are read in chunks, and --gen_kwargs that cannot be used."""

import pytest
import torch
from lm_eval.api.instance import Instance

from pipeline.errors import UserError
from pipeline.evaluation.lm_eval_generation import check_generation
from pipeline.evaluation.lm_eval_model import HippocampusLM
from pipeline.model.loading import load_model

BOOK = "def test(tmp_path): the session is a folder with tokens, and its scope is json."


@torch.no_grad()
@pytest.mark.parametrize("kind", ["adapter", "base"])
def test_beams_give_what_transformers_gives_without_chunks(folder, tokenizer, kind):
    model = load_model(str(folder / kind), dtype=torch.float64).eval()
    prompts = [BOOK + question for question in (" Who is it?", " Where?", " Who is in it?")]  # share what is read
    lm = HippocampusLM(model, tokenizer, prefill_chunk=8)
    found = {}
    for num_beams in (1, 2, 3):
        kwargs = {"until": [], "max_gen_toks": 12, "num_beams": num_beams}
        requests = [Instance("generate_until", {}, (text, kwargs), 0, metadata=("toy", 0, 1)) for text in prompts]
        found[num_beams] = lm.generate_until(requests, disable_tqdm=True)
        for text, answer in zip(prompts, found[num_beams], strict=True):
            ids = tokenizer(text, return_tensors="pt").input_ids
            asked = {"max_new_tokens": 12, "num_beams": num_beams, "do_sample": False, "pad_token_id": 1}
            output = model.generate(ids, attention_mask=torch.ones_like(ids), **asked)
            assert answer == tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True)
    assert found[2] != found[1] or found[3] != found[1]


def test_values_that_transformers_takes_pass_and_leave_the_random_numbers_alone(tokenizer):
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    check_generation({}, tokenizer)
    check_generation({"until": ["\n"], "max_gen_toks": 7, "do_sample": True, "temperature": 0.7}, tokenizer)
    check_generation({"max_new_tokens": 9, "num_beams": 2, "top_p": 0.5, "temperature": 0}, tokenizer)
    assert torch.equal(torch.rand(2), expected)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"foo": 1}, "foo=1: must be one of until, max_gen_toks, "),
        ({"num_return_sequences": 2}, "num_return_sequences=2: must be one of"),
        ({"max_length": 7}, "max_length=7: must be one of"),
        ({"max_gen_toks": 1.5}, "max_gen_toks=1.5: must be a whole number >= 1"),
        ({"max_new_tokens": 0}, "max_new_tokens=0: must be a whole number >= 1"),
        ({"num_beams": "two"}, "num_beams=two: must be a whole number >= 1"),
        ({"temperature": -1}, "temperature=-1: must be a number >= 0"),
        ({"do_sample": True, "temperature": 1.0, "top_k": -3}, ".*top_k=-3: cannot be used .*top_k"),
        ({"repetition_penalty": "much"}, "repetition_penalty=much: cannot be used"),
        ({"until": 5}, "until=5: cannot be used"),
    ],
)
def test_values_that_cannot_be_used_are_one_line(tokenizer, kwargs, message):
    with pytest.raises(UserError, match=f"--gen_kwargs {message}") as caught:
        check_generation(kwargs, tokenizer)
    assert "\n" not in str(caught.value)
