"""The offline teacher gives what the on-the-fly teacher gives, at the positions asked for, in the bytes foretold."""

import dataclasses
import errno
import io
import itertools
import json
import os
import re
import shutil
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import Qwen2ForCausalLM

from pipeline.attention.window import WindowSpec
from pipeline.config import ConfigError, MemoryConfig, TeacherCacheConfig, parse_cli
from pipeline.data.collate import Batch, DrawnSample, collate
from pipeline.data.dataset import PackedDataset
from pipeline.data.shard_format import DataError
from pipeline.errors import UserError
from pipeline.model.loading import load_base
from pipeline.model.output_head import find_output_head
from pipeline.teacher.cache import TeacherCache
from pipeline.teacher.cache_format import TeacherInfo
from pipeline.teacher.capture import read_ahead, run_capture
from pipeline.teacher.capture_plan import CapturePlan, plan_capture
from pipeline.teacher.capture_size import check_space, count_cache, describe_plan, free_bytes, most_bytes
from pipeline.teacher.extract import extract_signal
from pipeline.teacher.fingerprint import teacher_fingerprint
from pipeline.teacher.online import compute_teacher_hidden
from pipeline.teacher.verify import verify_cache
from tests.teacher.cache_folders import content
from tests.teacher.capture_inputs import make_data, make_teacher

BIG_VOCABULARY = 151_936
WINDOWS = [WindowSpec(0, 2), WindowSpec(2, 6), WindowSpec(4, 13)]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("capture")
    make_data(root / "data", make_teacher(root / "teacher"))
    make_teacher(root / "big", BIG_VOCABULARY, 8)
    return root


def plan(inputs: Path, output: Path, *flags: str, model: str = "teacher", **replaced: object) -> CapturePlan:
    named = {"model": inputs / model, "data": inputs / "data", "output": output} | replaced
    arguments = [f"--{name}={value}" for name, value in named.items()]
    return plan_capture(parse_cli(TeacherCacheConfig, [*arguments, *flags]))


def capture(inputs: Path, output: Path, *flags: str, **named: object) -> tuple[CapturePlan, TeacherCache]:
    """A finished cache, verified with the product's own tool."""
    made = plan(inputs, output, *flags, **named)
    outcome = run_capture(made, rank=0, num_ranks=1, local_rank=0)
    size = verify_cache(output, made.dataset)[1]
    assert outcome.num_left == 0 and outcome.num_positions == size.num_positions > 0
    return made, TeacherCache(output, made.dataset)


def on_the_fly(folder: Path, dtype: torch.dtype, dataset: PackedDataset) -> list[tuple[int, Batch, torch.Tensor]]:
    """Sample, micro-batch of it alone and the training's own teacher hidden states, for several windows."""
    model = load_base(str(folder), memory=MemoryConfig(), window=None, dtype=dtype, seed=5).train()
    made = []
    for index, window in itertools.product(range(len(dataset)), WINDOWS):
        batch = collate([DrawnSample(0, dataset[index], window)])
        if len(batch.positions):
            made.append((index, batch, compute_teacher_hidden(model.get_decoder(), batch)[0]))
    return made


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_hidden_states_are_those_of_the_teacher_on_the_fly_to_the_last_bit(inputs, tmp_path, dtype) -> None:
    flags = ["--signal=hidden", f"--dtype={dtype}", f"--base_dtype={dtype}"]
    made, cache = capture(inputs, tmp_path / "cache", *flags, "--min_budget=2")
    due = on_the_fly(inputs / "teacher", getattr(torch, dtype), made.dataset)
    assert len(due) >= 12
    for index, batch, hidden in due:
        found = torch.from_numpy(cache.read(index, batch.samples[0].sample.key, batch.positions.numpy()).decode())
        assert hidden.std() > 0.5 and torch.equal(found.to(hidden.dtype), hidden)


@pytest.mark.parametrize("flags", [["topk", "--k=7"], ["sampled", "--num_draws=9", "--seed=4"]])
def test_other_signals_are_extracted_from_these_hidden_states(inputs, tmp_path, flags) -> None:
    """With Qwen's vocabulary, and in the same chunks."""
    made, cache = capture(
        inputs,
        tmp_path / "cache",
        f"--signal={flags[0]}",
        *flags[1:],
        "--base_dtype=float32",
        "--min_budget=2",
        "--chunk_size=16",
        model="big",
    )
    assert made.signal.vocab_size == BIG_VOCABULARY
    head = find_output_head(load_base(str(inputs / "big"), memory=MemoryConfig(), window=None, dtype=torch.float32))
    num_compared = 0
    for index, batch, hidden in on_the_fly(inputs / "big", torch.float32, made.dataset):
        positions = batch.positions.numpy()
        if len(positions) != len(made.positions.select(made.dataset[index])):
            continue  # another window: other chunks
        due = extract_signal(made.signal, hidden, head, made.dataset[index].key, positions, 16)
        found = cache.read(index, batch.samples[0].sample.key, positions).to_members()
        assert all(np.array_equal(array, found[name]) for name, array in due.to_members().items())
        num_compared += 1
    assert num_compared >= 6


def stored_positions(folder: Path) -> dict[str, np.ndarray]:
    found = {}
    for path in folder.glob("*.tar"):
        with tarfile.open(path) as tar:
            for name in tar.getnames():
                if name.endswith(".positions.npy"):
                    found[name.split(".")[0]] = np.load(io.BytesIO(tar.extractfile(name).read()))
    return found


@pytest.mark.parametrize("budget", [0, 8])
def test_every_position_that_can_be_supervised_and_no_other_is_stored(inputs, tmp_path, budget) -> None:
    """Answers only where the data has labels; never a document's last token."""
    flags = ["--signal=topk", "--k=1", f"--min_budget={budget}", "--compression=none"]
    made, _ = capture(inputs, tmp_path / "cache", *flags)
    found, num_labelled = stored_positions(tmp_path / "cache"), 0
    assert len(found) == len(made.dataset) == 8
    for index in range(8):
        sample, due = made.dataset[index], []
        for start, end in itertools.pairwise(sample.cu_seqlens.tolist()):
            for position in range(start + budget, end - 1):
                if sample.loss_mask is None or sample.loss_mask[position + 1]:
                    due.append(position)
        assert found[sample.key].tolist() == due
        num_labelled += len(due) * (sample.loss_mask is not None)
    assert num_labelled > 10 and sum(len(positions) == 0 for positions in found.values()) == 2


SIGNALS = {
    **{dtype: ["--signal=hidden", f"--dtype={dtype}"] for dtype in ("float32", "bfloat16", "float16", "int8")},
    "topk": ["--signal=topk", "--k=5"],
    "one draw": ["--signal=sampled", "--num_draws=1"],  # the bound is reached: no draw equals another
    "draws": ["--signal=sampled", "--num_draws=300"],
}


@pytest.mark.parametrize("name", SIGNALS)
def test_the_size_is_foretold_to_the_byte(inputs, tmp_path, name) -> None:
    made = plan(inputs, tmp_path / "cache", *SIGNALS[name], "--compression=none")
    size, text = count_cache(made, made.dataset.manifest.shards), describe_plan(made)
    assert not (tmp_path / "cache").exists() and re.search(r"there already +0 of 4 shards", text)
    outcome = run_capture(made, 0, 1, 0)
    cache, signal_bytes = TeacherCache(tmp_path / "cache", made.dataset), 0
    for index in range(len(made.dataset)):
        sample = made.dataset[index]
        members = cache.read(index, sample.key, made.positions.select(sample)).to_members()
        signal_bytes += sum(array.nbytes for array in members.values())
    found = sum(path.stat().st_size for path in (tmp_path / "cache").glob("shard-*"))
    assert outcome.num_positions == size.num_positions
    if name == "draws":
        assert signal_bytes < size.signal_bytes and found < size.file_bytes and "at most" in text
    else:
        assert (signal_bytes, found) == (size.signal_bytes, size.file_bytes)
        assert re.search(rf"signal size +.*\b{signal_bytes} bytes\)?\n", text)
        assert re.search(rf"file size +.*\b{found} bytes\)? in 8 files\n", text)
    assert re.search(r"there already +4 of 4 shards", describe_plan(made))


def test_a_rerun_does_what_is_missing_and_nothing_else(inputs, tmp_path) -> None:
    made, _ = capture(inputs, tmp_path / "cache", "--signal=hidden")
    before = content(tmp_path / "cache")
    idle = run_capture(made, 0, 1, 0)
    assert (idle.num_shards, idle.num_left) == (0, 0)
    for suffix in ("tar", "idx.npy"):  # as the reader says for a damaged one
        (tmp_path / f"cache/shard-00000-001.{suffix}").unlink()
    again = run_capture(made, 0, 1, 0)
    assert (again.num_shards, again.num_left) == (1, 0) and content(tmp_path / "cache") == before
    facts = json.loads((tmp_path / "cache/run.json").read_text())
    assert facts["num_ranks"] == 1 and facts["base_dtype"] == "bfloat16"
    assert facts["versions"]["torch"] and facts["command"] and facts["commit"]


def test_another_precision_or_teacher_is_another_cache(inputs, tmp_path) -> None:
    capture(inputs, tmp_path / "cache", "--signal=hidden", "--base_dtype=float32")
    before = content(tmp_path / "cache")
    with pytest.raises(DataError, match="base_dtype is float32, not bfloat16"):
        run_capture(plan(inputs, tmp_path / "cache", "--signal=hidden"), 0, 1, 0)
    other = shutil.copytree(inputs / "teacher", tmp_path / "teacher")
    settings = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({"transformers_version": "9", **settings, "use_cache": False}))
    assert teacher_fingerprint(str(other)) == teacher_fingerprint(str(inputs / "teacher"))
    (other / "config.json").write_text(json.dumps({**settings, "rms_norm_eps": 1e-3}))
    flags = ["--signal=hidden", "--base_dtype=float32"]
    with pytest.raises(DataError, match="is another cache: teacher_sha256 is"):
        run_capture(plan(inputs, tmp_path / "cache", *flags, model=other), 0, 1, 0)
    assert content(tmp_path / "cache") == before


def test_a_teacher_with_a_few_other_bytes_is_another_one_and_named_with_the_rest(inputs, tmp_path) -> None:
    """Before torch is needed: by the plan. A dry run does not read the weights."""
    capture(inputs, tmp_path / "cache", "--signal=hidden")
    other = shutil.copytree(inputs / "teacher", tmp_path / "teacher")
    raw = bytearray((other / "model.safetensors").read_bytes())
    raw[-100] ^= 1
    (other / "model.safetensors").write_bytes(raw)
    with pytest.raises(DataError, match=r"is another cache: teacher_sha256 is \w{64}, not \w{64}; signal.dtype is"):
        plan(inputs, tmp_path / "cache", "--signal=hidden", "--dtype=int8", model=other)
    plan(inputs, tmp_path / "cache", "--signal=hidden", "--dry_run=true", model=other)


def test_other_chunks_are_another_cache(inputs, tmp_path) -> None:
    topk, hidden = "--signal=topk", "--signal=hidden"
    made, _ = capture(inputs, tmp_path / "topk", topk, "--chunk_size=16")
    assert (made.describe_cache("").chunk_size, made.describe_cache("").forward_chunk) == (16, None)
    for flags, message in (
        (["--chunk_size=17"], "chunk_size is 16, not 17"),
        ([], "chunk_size is 16, not 256"),
        (["--forward_chunk=9"], "forward_chunk is None, not 9"),
    ):
        with pytest.raises(DataError, match=message):
            plan(inputs, tmp_path / "topk", topk, *flags)
    capture(inputs, tmp_path / "hidden", hidden, "--forward_chunk=9")
    with pytest.raises(DataError, match="forward_chunk is 9, not None; name another folder"):
        plan(inputs, tmp_path / "hidden", hidden)
    assert plan(inputs, tmp_path / "hidden", hidden, "--forward_chunk=9").describe_cache("").chunk_size is None


def test_a_folder_that_may_not_be_written_is_named_however_it_is_spelled(inputs, tmp_path, monkeypatch) -> None:
    (tmp_path / "cache").mkdir()
    monkeypatch.chdir(tmp_path / "cache")

    def refuse(path: Path, *_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    for output in (".", "../cache", str(tmp_path / "cache")):
        with monkeypatch.context() as patch:
            patch.setattr("pipeline.teacher.cache_format.write_file", refuse)
            with pytest.raises(UserError, match="cannot be written: Permission denied; mend that"):
                run_capture(plan(inputs, output, "--signal=hidden"), 0, 1, 0)
    outside = PermissionError(errno.EACCES, "Permission denied", "/elsewhere")
    with monkeypatch.context() as patch:
        patch.setattr(TeacherInfo, "save", lambda *_: (_ for _ in ()).throw(outside))
        with pytest.raises(PermissionError):
            run_capture(plan(inputs, ".", "--signal=hidden"), 0, 1, 0)


def test_the_next_sample_is_read_meanwhile_and_an_error_comes_in_its_place() -> None:
    asked, error = [threading.Event() for _ in range(4)], DataError("sample 3 is damaged")

    def read() -> Iterator[int]:
        for number, event in enumerate(asked):
            event.set()
            if number == 3:
                raise error
            yield number

    found = []
    with pytest.raises(DataError) as raised:
        for number in read_ahead(read()):
            found.append(number)
            assert asked[number + 1].wait(10) and not any(event.is_set() for event in asked[number + 2 :])
    assert raised.value is error and found == [0, 1, 2] and list(read_ahead(iter([]))) == []


def test_a_teacher_whose_values_cannot_be_stored_is_named_with_the_sample(inputs, tmp_path) -> None:
    broken = shutil.copytree(inputs / "teacher", tmp_path / "broken")
    model = Qwen2ForCausalLM.from_pretrained(broken)
    model.model.norm.weight.data *= 1e5
    model.save_pretrained(broken)
    made = plan(inputs, tmp_path / "cache", "--signal=hidden", "--dtype=float16", model=broken)
    with pytest.raises(DataError, match=r"at sample 00000-000000 of shard-00000-000: .*beyond float16; try another"):
        run_capture(made, 0, 1, 0)
    assert not list((tmp_path / "cache").glob("shard-*"))
    capture(inputs, tmp_path / "other", "--signal=hidden", "--dtype=bfloat16", model=broken)


@pytest.mark.parametrize("name", SIGNALS)
def test_a_cache_that_does_not_fit_is_refused_before_any_work(inputs, tmp_path, capsys, name) -> None:
    """Whether the manifest tells or the data must be read; what a sampled signal takes is not known before."""
    made = plan(inputs, tmp_path / "cache", *SIGNALS[name], "--min_budget=9", "--compression=none")
    shards = made.dataset.manifest.shards
    needed, most = count_cache(made, shards).file_bytes, most_bytes(made, shards)
    assert needed < most
    for free in (most, most - 1, needed):
        check_space(made, free)
    assert capsys.readouterr().err == ""
    message = rf"--output \S+cache: .*\b{needed - 1} bytes\)? are free where 4 shards take .*\b{needed} bytes\)?"
    if made.signal.kind == "sampled":
        check_space(made, needed - 1)
        assert re.search(rf"^warning: {message}$", capsys.readouterr().err)
    else:
        with pytest.raises(UserError, match=f"^{message}; make room"):
            check_space(made, needed - 1)
    assert not (tmp_path / "cache").exists()


def test_room_is_that_of_the_disk_even_where_the_folder_is_not_yet(tmp_path) -> None:
    stat = os.statvfs(tmp_path)
    assert abs(free_bytes(tmp_path / "not" / "yet") - stat.f_bavail * stat.f_frsize) < 1 << 30


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--signal=topk", "--dtype=int8"], "--dtype int8: has no meaning for --signal topk, only for hidden"),
        (["--signal=sampled", "--k=5"], "--k 5: has no meaning for --signal sampled, only for topk"),
        (["--signal=hidden", "--seed=0"], "--seed 0: has no meaning for --signal hidden"),
        (["--signal=topk", "--num_draws=5"], "--num_draws 5: has no meaning for --signal topk"),
        (["--signal=hidden", "--chunk_size=5"], "--chunk_size 5: .* only for topk and sampled"),
        (["--signal=topk", "--k=0"], "--k: must be >= 1, found 0"),
        (["--signal=topk", "--forward_chunk=0"], "--forward_chunk: must be >= 1, found 0"),
        (["--signal=topk", "--k=98"], "--k 98: --model .*teacher has 97 tokens"),
        (["--signal=sampled", "--num_draws=70000"], "num_draws 70000"),
        (["--signal=hidden", "--min_budget=-1"], "--min_budget: must be >= 0"),
        (["--signal=hidden", "--min_budget=47"], "--min_budget 47: .* sequence length 48, .* give at most 46"),
        (["--signal=hidden", "--output=s3://bucket/cache"], "--output s3:/bucket/cache: .* not a URL"),
        (["--signal=logits"], "signal"),
        ([], "signal"),
    ],
)
def test_settings_without_sense_are_refused_by_name(inputs, tmp_path, flags, message) -> None:
    with pytest.raises((ConfigError, UserError), match=message) as error:
        plan(inputs, tmp_path / "cache", *flags)
    assert "\n" not in str(error.value)


def test_the_plan_holds_the_defaults(inputs, tmp_path) -> None:
    specs = [plan(inputs, tmp_path / "cache", f"--signal={name}").signal for name in ("hidden", "topk", "sampled")]
    assert [dataclasses.astuple(spec) for spec in specs] == [("bfloat16", 32), (50, 97), (50, 0, 97)]
