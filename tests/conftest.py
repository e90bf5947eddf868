"""Fixtures that several parts of the suite share."""

import fcntl
import json
import subprocess
import sys
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from tests.qwen_tokenizer import NotToBeHad, fetch_qwen_tokenizer

TINY_VOCAB_SIZE = 320
TINY_SPECIAL_TOKENS = ["<|begin|>", "<|end|>"]


@pytest.fixture(scope="session")
def tiny_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a byte-level BPE tokenizer of TINY_VOCAB_SIZE tokens; BOS by post-processor, EOS `<|end|>`."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=TINY_VOCAB_SIZE,
        special_tokens=TINY_SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([Path(__file__).read_text()], trainer)
    assert tokenizer.get_vocab_size() == TINY_VOCAB_SIZE
    begin = TINY_SPECIAL_TOKENS[0]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A", special_tokens=[(begin, tokenizer.token_to_id(begin))]
    )
    folder = tmp_path_factory.mktemp("tiny_tokenizer")
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": begin,
        "eos_token": TINY_SPECIAL_TOKENS[1],
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """SmolLM2-135M-Instruct as a Hugging Face folder, fetched once; skips with the reason where it cannot be had."""
    repository = Path(__file__).parents[1]
    folder = repository / ".cache" / "smollm2-135m"
    folder.parent.mkdir(exist_ok=True)
    with open(folder.parent / "fetch.lock", "w") as lock:  # two test workers, one download
        fcntl.flock(lock, fcntl.LOCK_EX)
        fetch = [sys.executable, repository / "launchers/demo/fetch_model.py", "--output", folder]
        done = subprocess.run(fetch, capture_output=True, text=True, timeout=280)
    if done.returncode != 0:
        pytest.skip(f"SmolLM2-135M is not to be had: {done.stderr.strip().splitlines()[-1]}")
    return folder


@pytest.fixture(scope="session")
def qwen_tokenizer() -> Path:
    """A folder with Qwen2.5's tokenizer and chat template, fetched once; skips where they cannot be had."""
    try:
        return fetch_qwen_tokenizer(Path(__file__).parents[1] / ".cache")
    except NotToBeHad as error:
        pytest.skip(f"Qwen2.5's tokenizer is not to be had: {error}")
