"""Later masses in a teacher cache: what scorers are fitted to is the same as without them, and nothing else is taken
for them."""

from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.attention.window import WindowSpec
from pipeline.config import ConfigError, MemoryConfig, TeacherCacheConfig, parse_cli
from pipeline.data.collate import DrawnSample, collate
from pipeline.data.shard_format import DataError
from pipeline.errors import UserError
from pipeline.model.augment import memory_layers
from pipeline.model.loading import load_base
from pipeline.teacher import cache_later_masses
from pipeline.teacher.cache_format import TeacherInfo
from pipeline.teacher.cache_later_masses import LATER_MASSES_NAME, read_later_masses, token_step
from pipeline.teacher.capture import run_capture
from pipeline.teacher.capture_plan import CapturePlan, plan_capture
from pipeline.teacher.capture_size import describe_plan, later_mass_bytes
from pipeline.teacher.verify import verify_cache
from pipeline.training.distillation import Distillation
from pipeline.training.scorer_features import CachedMasses, FeatureStore
from tests.teacher.capture_inputs import make_data, make_teacher

COUNT = 4
SLIDING = {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}


def plan(folder: Path, output: str, *flags: str) -> CapturePlan:
    named = {"model": folder / "teacher", "data": folder / "data", "output": folder / output, "signal": "topk"}
    named |= {"base_dtype": "float32", "later_mass_samples": COUNT}
    return plan_capture(parse_cli(TeacherCacheConfig, [*(f"--{k}={v}" for k, v in named.items()), *flags]))


@pytest.fixture
def inputs(tmp_path) -> Path:
    make_data(tmp_path / "data", make_teacher(tmp_path / "teacher", vocab_size=97))
    return tmp_path


@pytest.mark.parametrize(("settings", "at_most"), [({}, 1024), ({}, 16), (SLIDING, 1024)])
def test_candidates_are_those_of_a_forward_that_looks_at_the_attention(
    tmp_path, monkeypatch, settings, at_most
) -> None:
    """Packed documents, one layer that slides, more tokens than are kept; any window of several sizes."""
    monkeypatch.setattr(cache_later_masses, "MAX_TOKENS", at_most)
    make_data(tmp_path / "data", make_teacher(tmp_path / "teacher", **settings))
    made = plan(tmp_path, "cache")
    run_capture(made, 0, 1, 0)
    masses = read_later_masses(tmp_path / "cache", TeacherInfo.load(tmp_path / "cache"))
    assert list(masses) == [0, 2, 4, 6] and len(made.dataset) == 8
    options = {"window": WindowSpec(2, 4, 3), "dtype": torch.float32, "has_scorer": True, "check": False}
    model = load_base(str(tmp_path / "teacher"), memory=MemoryConfig(), **options).eval()
    layers, num_candidates = memory_layers(model), 0
    assert len(layers) == (1 if settings else 2)
    for window in (WindowSpec(2, 4, 3), WindowSpec(0, 9)):
        for number, x in masses.items():
            batch = collate([DrawnSample(number, made.dataset[number], window)])
            cached = CachedMasses(torch.from_numpy(x), token_step(len(made.dataset[number].input_ids)))
            stores = [FeatureStore(batch.documents, 1024, layers, given) for given in (None, cached)]
            for store in stores:
                Distillation(model, "retention", 8)(batch, torch.zeros(len(batch.positions)), record=store)
            own, given = (store.layers for store in stores)
            assert own.keys() == given.keys()
            for layer in own:
                names = [torch.cat([x.hidden, x.received], 1) for x in (own[layer], given[layer])]
                places = (names[0][:, None] == names[1]).all(2).int().argmax(0)
                for a, b in zip(own[layer], given[layer], strict=True):
                    torch.testing.assert_close(a[places], b)
                num_candidates += len(places)
                assert at_most < 48 or len(places) == len(own[layer].counts)
    assert num_candidates > 50


def test_a_run_that_died_before_they_were_written_is_not_finished_and_goes_on(inputs, monkeypatch) -> None:
    made = plan(inputs, "cache")
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.teacher.capture.capture_later_masses", lambda plan, teacher: None)
        run_capture(made, 0, 1, 0)
    with pytest.raises(DataError, match="is not finished"):
        verify_cache(inputs / "cache", made.dataset)
    run_capture(made, 0, 1, 0)
    verify_cache(inputs / "cache", made.dataset)
    before = (inputs / "cache" / LATER_MASSES_NAME).stat().st_mtime_ns
    run_capture(made, 0, 1, 0)
    assert (inputs / "cache" / LATER_MASSES_NAME).stat().st_mtime_ns == before
    with pytest.raises(DataError, match="later_mass_samples is 4, not 2"):
        plan(inputs, "cache", "--later_mass_samples=2")


def test_what_is_missing_damaged_or_of_another_cache_is_refused(inputs) -> None:
    made, other = plan(inputs, "cache"), plan(inputs, "other", "--k=7")
    for cache in (made, other):
        run_capture(cache, 0, 1, 0)
    path, info = inputs / "cache" / LATER_MASSES_NAME, TeacherInfo.load(inputs / "cache")
    mark = path.with_name(f"{path.name}.sha256")
    good = path.read_bytes(), mark.read_bytes()
    flipped = bytearray(good[0])
    flipped[-5] ^= 1
    theirs = [(inputs / "other" / name.name).read_bytes() for name in (path, mark)]
    for damage, said in (((flipped, good[1]), "does not match"), (theirs, "another cache"), ((good[0], b""), "match")):
        path.write_bytes(damage[0])
        mark.write_bytes(damage[1])
        with pytest.raises(DataError, match=said):
            read_later_masses(inputs / "cache", info)
        with pytest.raises(DataError, match=said):
            verify_cache(inputs / "cache")
    path.unlink()
    for check in (verify_cache, lambda folder: read_later_masses(folder, info)):
        with pytest.raises(DataError, match=LATER_MASSES_NAME):
            check(inputs / "cache")


def test_sizes_are_told_before_and_caches_without_them_are_as_they_were(inputs) -> None:
    made = plan(inputs, "cache")
    run_capture(made, 0, 1, 0)
    masses = read_later_masses(inputs / "cache", TeacherInfo.load(inputs / "cache"))
    assert sum(x.nbytes for x in masses.values()) <= later_mass_bytes(made)
    assert max(x.nbytes for x in masses.values()) == later_mass_bytes(made) // COUNT  # a sample of one document
    assert all(np.isfinite(x).all() for x in masses.values()) and any((x > 0).any() for x in masses.values())
    assert f"of {COUNT} samples" in describe_plan(made)
    without = plan(inputs, "without", "--later_mass_samples=0")
    assert b"later_mass" not in without.describe_cache("0" * 64).to_bytes() and later_mass_bytes(without) == 0


def test_what_cannot_be_together_is_one_line(inputs) -> None:
    for flag in ("--forward_chunk=8", "--sequence_parallel_size=2", "--ds_config=ds_configs/zero3.json"):
        with pytest.raises(ConfigError, match=f"--later_mass_samples 4 does not go with {flag.partition('=')[0]}"):
            plan(inputs, "cache", flag)
    with pytest.raises(UserError, match=r"--later_mass_samples 9: .* has 8 samples"):
        plan(inputs, "cache", "--later_mass_samples=9")
