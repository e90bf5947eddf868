"""Every kind of model by its hub id, as the hub's cache on this machine has it, without a network."""

import json
import shutil
from pathlib import Path

import huggingface_hub.constants
import pytest
from huggingface_hub.utils import filter_repo_objects

from pipeline.errors import UserError
from pipeline.metrics.architecture import load_architecture
from pipeline.model.adapter import base_fingerprint
from pipeline.model.files import FETCHED, find_tokenizer_json, resolve_model
from tests.tiny_models import make_adapter
from tests.training.synthetic import make_model

COMMIT = "c" * 40


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Path:
    """An empty cache of the hub, which is out of reach."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def put(hub: Path, name: str, folder: Path) -> Path:
    """What `hf download NAME` leaves."""
    repository = hub / f"models--{name.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    return Path(shutil.copytree(folder, repository / "snapshots" / COMMIT))


def test_bases_and_own_adapters_are_found_by_hub_id(hub, tmp_path):
    base = make_model(tmp_path / "base")
    adapter = make_adapter(tmp_path / "adapter", base)
    settings = json.loads((adapter / "ahn_config.json").read_text())
    (adapter / "ahn_config.json").write_text(json.dumps(settings | {"base_model": "own/base"}))
    folders = {name: put(hub, name, path) for name, path in [("own/base", base), ("own/AHN-mine", adapter)]}
    files = resolve_model(Path("own/base"), None)
    assert (files.kind, files.folder) == ("base", folders["own/base"])
    files = resolve_model(Path("own/AHN-mine"), None)
    assert (files.kind, files.folder, files.base) == ("adapter", folders["own/AHN-mine"], "own/base")
    assert base_fingerprint("own/base") == base_fingerprint(str(base))
    assert find_tokenizer_json("own/base").read_bytes() == (base / "tokenizer.json").read_bytes()
    assert load_architecture("own/base") == load_architecture(str(base))


def test_of_weights_one_copy_is_fetched():
    weights = ["model.safetensors", "model-00001-of-00002.safetensors", "model.safetensors.index.json"]
    others = ["consolidated.safetensors", "consolidated-00001-of-00002.safetensors", "original/model.safetensors"]
    assert list(filter_repo_objects([*weights, *others], allow_patterns=FETCHED)) == weights


@pytest.mark.parametrize(
    "look", [lambda name: resolve_model(Path(name), None), base_fingerprint, find_tokenizer_json, load_architecture]
)
def test_without_a_network_it_is_one_line(hub, look):
    with pytest.raises(UserError, match=r"^--model own/gone is no local folder, and the hub gave no") as error:
        look("own/gone")
    assert "\n" not in str(error.value)
