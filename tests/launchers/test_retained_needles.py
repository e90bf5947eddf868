"""Needles and absorbed facts that only retained tokens can still know, on SmolLM2-135M: with scorers that were fitted
to plain text, and to documents with questions at their end besides."""

import json
from pathlib import Path
from typing import get_args

import pytest
import yaml
from transformers import AutoTokenizer

from pipeline.config import NeedleTask
from pipeline.evaluation.haystack import Haystack
from pipeline.evaluation.needles.documents import build_prompt, encode_texts
from pipeline.evaluation.needles.tasks import draw_texts, make_generator
from tests.drill import record
from tests.launchers.retained_study import MODEL, SINKS, STUDY, evaluate, list_sources, prepare, script, train

SEQ_LEN, WINDOW = 1024, 96
OTHER_SEED = 1000
"""Of the words and numbers to train on; the evaluation's is 0, and its text the Python language reference."""
NUM_QUESTIONS, SAMPLES = 400, 48
LENGTHS, RETAINED = (256, 512, 1024), (64, 128, 256)


@pytest.mark.drill
@pytest.mark.timeout(3 * 3600)
def test_needles_that_were_evicted_are_recalled_where_scorers_know_questions() -> None:
    """Kept in runs/retained: a drill that was stopped goes on."""
    found = {}
    for name, mixture in (("text", {"text": 1.0}), ("text_and_questions", {"text": 0.5, "questions": 0.5})):
        output = STUDY / f"needles-{name}"
        flags = ["--train.mixture", json.dumps(mixture), "--train.scorer_samples", SAMPLES]
        fit = train(prepare_questions(), output / "train", WINDOW, max(RETAINED), 0, *flags)
        kinds = ("wider", "received", "retained")
        variants = ["full", "window", *(f"{kind}{m}" for m in RETAINED for kind in kinds)]
        flags = ["--suites", "needles", "absorbed", "heldout", "--variants", *variants]
        flags += ["--needles.lengths", list(LENGTHS), "--needles.examples", 2]
        flags += ["--data", prepare(SEQ_LEN) / "heldout", "--max_documents", 16, "--pieces_per_document", 1]
        found[name] = {"fit": fit, **evaluate(output / "train/adapter", output / "evaluation", WINDOW, *flags)}
    record("retained_needles", found)


def prepare_questions() -> Path:
    """The demo's training documents, and parts of them with needles and a question and its answer at the end, as two
    sources of one folder."""
    folder, sources = STUDY / "data-questions", list_sources()
    corpus = STUDY / "questions.jsonl"
    if not corpus.exists():
        write_questions(corpus, [Path(line) for line in (sources / "train.txt").read_text().splitlines()])
    listed = {"text": [f"@{sources}/train.txt"], "questions": [str(corpus)]}
    weighted = [{"name": name, "inputs": inputs, "weight": 0.5} for name, inputs in listed.items()]
    (STUDY / "questions.yaml").write_text(yaml.safe_dump({"sources": weighted}))
    flags = ["--sources", STUDY / "questions.yaml", "--tokenizer", MODEL, "--output", folder]
    script("prepare.py", *flags, "--seq_len", SEQ_LEN, "--num_workers", 2)
    return folder


def write_questions(path: Path, texts: list[Path]) -> None:
    """A document a line: needles of all tasks in turn, at random depths."""
    tokenizer, tasks = AutoTokenizer.from_pretrained(MODEL), get_args(NeedleTask)
    joined = "\n".join(text.read_text(encoding="utf-8") for text in texts)
    haystack = Haystack(tokenizer(joined, add_special_tokens=False, verbose=False).input_ids, tokenizer)
    with path.open("w", encoding="utf-8") as lines:
        for number in range(NUM_QUESTIONS):
            task = tasks[number % len(tasks)]
            generator = make_generator(task, SEQ_LEN, 0.0, number, OTHER_SEED, stream=3)
            depth = float(generator.random())
            encoded = encode_texts(tokenizer, draw_texts(task, SEQ_LEN, depth, number, OTHER_SEED))
            depths = draw_texts(task, SEQ_LEN, depth, number, OTHER_SEED).depths
            length = SEQ_LEN - len(encoded.asked.answer) - 1  # and the end of the text
            prompt = build_prompt(haystack, encoded, depths, length, SINKS, generator)
            lines.write(json.dumps({"text": tokenizer.decode([*prompt.tokens, *encoded.asked.answer])}) + "\n")
