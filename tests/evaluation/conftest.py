"""One tiny model with a memory that acts, for all that measures models."""

from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from tests.conftest import TINY_VOCAB_SIZE
from tests.tiny_models import make_adapter, make_base


@pytest.fixture(scope="session")
def folder(tmp_path_factory, tiny_tokenizer) -> Path:
    """With `base`, and `adapter` for it."""
    folder = tmp_path_factory.mktemp("model")
    make_adapter(folder / "adapter", make_base(folder / "base", tiny_tokenizer, TINY_VOCAB_SIZE))
    return folder


@pytest.fixture(scope="session")
def tokenizer(folder) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(folder / "base")
