"""What is foretold of a compressed cache: bounds, and no refusal that rests on one."""

import re
from pathlib import Path

import pytest

from pipeline.config import TeacherCacheConfig
from pipeline.errors import UserError
from pipeline.teacher import capture_plan
from pipeline.teacher.cache import TeacherCache
from pipeline.teacher.cache_samples import member_bytes
from pipeline.teacher.capture import run_capture
from pipeline.teacher.capture_plan import CapturePlan, plan_capture
from pipeline.teacher.capture_size import check_space, count_cache, describe_plan, most_bytes
from pipeline.teacher.verify import verify_cache
from tests.teacher.capture_inputs import make_data, make_teacher

SIGNALS = ["hidden", "topk", "sampled"]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    make_data(folder / "data", make_teacher(folder / "teacher"), repeats=3)
    return folder


def plan(inputs: Path, output: Path, signal: str, **settings: object) -> CapturePlan:
    return plan_capture(TeacherCacheConfig(str(inputs / "teacher"), str(inputs / "data"), output, signal, **settings))


@pytest.mark.parametrize("signal", SIGNALS)
def test_compressed_by_default_and_within_the_bound(inputs: Path, tmp_path: Path, signal: str) -> None:
    made, plain = (plan(inputs, tmp_path / c, signal, compression=c) for c in ("zstd", "none"))
    assert plan(inputs, tmp_path / "zstd", signal).config.compression == "zstd"
    shards = made.dataset.manifest.shards
    bound, text = count_cache(made, shards), describe_plan(made)
    assert re.search(rf"^file size +at most .*\b{bound.file_bytes} bytes\)? in \d+ files$", text, re.M)
    assert re.search(r"^compression +zstd$", text, re.M)
    assert bool(re.search(rf"^signal size +[^a]*\b{bound.signal_bytes} bytes\)?$", text, re.M)) == (signal != "sampled")
    assert bound.file_bytes >= count_cache(plain, shards).file_bytes and most_bytes(made, shards) >= bound.file_bytes
    for each in (made, plain):
        run_capture(each, 0, 1, 0)
        verify_cache(each.config.output, each.dataset)
    compressed, whole = (sum(f.stat().st_size for f in c.config.output.glob("shard-*")) for c in (made, plain))
    print(f"{signal}: {compressed} of {whole} bytes")
    assert compressed <= whole <= bound.file_bytes
    caches = [TeacherCache(c.config.output, c.dataset) for c in (made, plain)]
    for index in range(len(made.dataset)):
        sample = made.dataset[index]
        positions = made.positions.select(sample)
        one, other = (cache.read(index, sample.key, positions).to_members() for cache in caches)
        assert {n: a.tobytes() for n, a in one.items()} == {n: a.tobytes() for n, a in other.items()}


@pytest.mark.parametrize("signal", SIGNALS)
def test_a_bound_that_does_not_fit_is_only_a_warning(
    inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], signal: str
) -> None:
    made = plan(inputs, tmp_path / "cache", signal)
    shards = made.dataset.manifest.shards
    needed, most = count_cache(made, shards).file_bytes, most_bytes(made, shards)
    for free in (most, needed):
        check_space(made, free)
    assert capsys.readouterr().err == ""
    check_space(made, needed - 1)
    message = rf"^warning: --output \S+cache: .*\b{needed - 1} bytes\)? are free .* up to .*\b{needed} bytes\)?$"
    assert re.search(message, capsys.readouterr().err)


def test_a_sample_too_large_to_compress_is_refused_before_any_work(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    signal = plan(inputs, tmp_path / "cache", "hidden").signal
    largest = sum(member_bytes(signal, 48).values())
    monkeypatch.setattr(capture_plan, "MAX_UNPACKED_BYTES", largest)
    plan(inputs, tmp_path / "cache", "hidden")
    monkeypatch.setattr(capture_plan, "MAX_UNPACKED_BYTES", largest - 1)
    plan(inputs, tmp_path / "cache", "hidden", compression="none")
    message = f"^--compression zstd: a sample of 48 positions takes {largest} bytes, and what is compressed at most "
    with pytest.raises(UserError, match=message + f"{largest - 1}; give --compression none or another --signal"):
        plan(inputs, tmp_path / "cache", "hidden")
