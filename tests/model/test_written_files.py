"""Adapters, merged folders, published ones and caches: whole or absent, and readable as the umask says."""

import errno
import os
import resource
import shutil
from contextlib import contextmanager

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from pipeline.errors import UserError
from pipeline.model.adapter import adapter_state, base_fingerprint, save_adapter
from pipeline.model.cache_file import save_cache
from pipeline.model.export import export_published, merge_adapter
from pipeline.model.generation import absorb
from pipeline.model.loading import load_model
from tests.model.conftest import WINDOW


@pytest.fixture
def umask():
    before = os.umask(0o027)
    yield
    os.umask(before)


@contextmanager
def small_files_only():
    """Every file that this process writes ends at 4,000 bytes, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def save(model, base, folder):
    info = {
        "base_model": base.folder,
        "base_fingerprint": base_fingerprint(base.folder),
        "memory": {"cell": base.cell, "init": "published"},
        "num_sink_tokens": WINDOW.num_sink_tokens,
        "window_size": WINDOW.window_size,
        "training": {},
    }
    save_adapter(folder, adapter_state(model), info)
    return folder


def test_whoever_the_umask_lets_may_read_what_is_written(base, tokens, tmp_path, umask):
    model = base.load_acting(torch.float32)
    adapter = save(model, base, tmp_path / "adapter")
    merge_adapter(adapter, tmp_path / "merged")
    export_published(adapter, tmp_path / "published")
    save_cache(absorb(model, tokens[:1], 7), model, tmp_path / "document.cache")
    paths = list(tmp_path.rglob("*"))
    assert {path.stat().st_mode & 0o777 for path in paths if path.is_file()} == {0o640}
    assert {path.stat().st_mode & 0o777 for path in paths if path.is_dir()} == {0o750}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "document.cache", "merged", "published"]


def test_what_cannot_be_written_leaves_nothing(base, tokens, tmp_path):
    model = base.load_acting(torch.float32)
    adapter = save(model, base, tmp_path / "adapter")
    cache = absorb(model, tokens[:1], 7)
    for work in (
        lambda: merge_adapter(adapter, tmp_path / "merged"),
        lambda: export_published(adapter, tmp_path / "published"),
        lambda: save_cache(cache, model, tmp_path / "document.cache"),
    ):
        with small_files_only(), pytest.raises(UserError, match="cannot be written") as error:
            work()
        assert "\n" not in str(error.value)
        assert [path.name for path in tmp_path.iterdir()] == ["adapter"]
    merge_adapter(adapter, tmp_path / "deep/merged")
    for export in (merge_adapter, export_published):
        with pytest.raises(UserError, match="already exists"):
            export(adapter, tmp_path / "deep/merged")


def test_a_merged_folder_has_the_tokenizer_of_the_base_or_none(base, tmp_path):
    other = tmp_path / "base"
    shutil.copytree(base.folder, other)
    for file in other.glob("tokenizer*"):
        file.unlink()
    adapter = save(base.load_acting(torch.float32), base, tmp_path / "adapter")
    merge_adapter(adapter, tmp_path / "without", base=str(other))
    assert not list((tmp_path / "without").glob("*token*"))
    load_model(str(tmp_path / "without"), dtype=torch.float32)
    # One that AutoTokenizer would make another tokenizer of, for the sake of the model's family.
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({"a": 0, "b": 1}, unk_token="a")))
    tokenizer.save_pretrained(other)
    (other / "chat_template.jinja").write_text("{{ messages }}")
    merge_adapter(adapter, tmp_path / "with", base=str(other))
    for file in (*other.glob("tokenizer*"), other / "chat_template.jinja"):
        assert (tmp_path / "with" / file.name).read_bytes() == file.read_bytes()


def test_what_cannot_be_read_of_the_base_is_named_and_not_the_output(base, tmp_path, monkeypatch):
    other = shutil.copytree(base.folder, tmp_path / "base")
    (other / "merges.txt").mkdir()
    adapter = save(base.load_acting(torch.float32), base, tmp_path / "adapter")
    with pytest.raises(UserError, match=r"^.*base/merges.txt of the base .*base cannot be read: Is a directory$"):
        merge_adapter(adapter, tmp_path / "merged", base=str(other))

    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(other / "model.safetensors"))

    monkeypatch.setattr("pipeline.model.export.load_adapter", fail)
    with pytest.raises(UserError, match=r"^.*base/model.safetensors of the base .* cannot be read: Input/output"):
        merge_adapter(adapter, tmp_path / "merged", base=str(other))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "base"]


def test_lora_can_name_the_output_projection_of_the_base_alone(base):
    """By PEFT's rule: a name of `target_modules` is a module's whole name, or its end after a dot."""
    names = [name for name, _ in base.load_acting(torch.float32).named_modules()]
    matched = [name for name in names if name.endswith(".self_attn.o_proj")]
    assert len(matched) == sum(name.endswith(".self_attn") for name in names) > 0
    assert not any(".ahn." in name for name in matched)
