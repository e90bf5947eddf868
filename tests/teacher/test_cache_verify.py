"""`python -m pipeline.teacher.verify` finds every kind of fault and names it; `.inspect` shows what is there."""

import dataclasses
import hashlib
import json
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import zstandard

from pipeline.data.dataset import PackedDataset
from pipeline.data.sealed_json import seal
from pipeline.data.shard_format import DataError, tokenizer_fingerprint
from pipeline.data.shard_io import END_OF_TAR, OpenShard
from pipeline.data.tar_members import tar_member
from pipeline.teacher import cache_view, verify
from pipeline.teacher.cache_format import TeacherInfo
from pipeline.teacher.cache_listing import Listing, listing_mark
from pipeline.teacher.cache_members import Compression, encode_member
from pipeline.teacher.cache_samples import encode_cached_sample
from pipeline.teacher.cache_writer import begin_cache
from pipeline.teacher.verify import verify_cache
from tests.teacher.cache_folders import SPECS, make_cache, make_data, make_info, make_signal, rekey, write_shard

SHARD = "shard-00004-000"


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Path) -> PackedDataset:
    fingerprint = tokenizer_fingerprint(tiny_tokenizer / "tokenizer.json")
    return make_data(tmp_path_factory.mktemp("data"), tokenizer_sha256=fingerprint)


COMPRESSIONS = ["none", "zstd"]


@pytest.fixture(scope="module")
def caches(dataset: PackedDataset, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A finished cache of every kind of signal: compressed, and ("plain KIND") not."""
    folder = tmp_path_factory.mktemp("caches")
    for kind in SPECS:
        make_cache(folder / kind, dataset, kind, 2, "zstd")
        make_cache(folder / f"plain {kind}", dataset, kind, 2, "none")
    return {path.name: path for path in folder.iterdir()}


def name_of(kind: str, compression: Compression) -> str:
    return kind if compression == "zstd" else f"plain {kind}"


@pytest.fixture
def cache(caches: dict[str, Path], tmp_path: Path) -> Path:
    """A copy to damage."""
    return shutil.copytree(caches["topk"], tmp_path / "cache")


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("kind", SPECS)
def test_a_whole_cache_passes(
    dataset: PackedDataset,
    caches: dict[str, Path],
    capsys: pytest.CaptureFixture[str],
    kind: str,
    compression: Compression,
) -> None:
    folder = caches[name_of(kind, compression)]
    assert verify.main([str(folder), "--data", str(dataset.folder)]) == 0
    out = capsys.readouterr().out
    assert "all well: 16 samples, 515 positions in 7 shards" in out
    assert f"past_budget with min_budget 2, compression {compression}\n" in out
    assert verify.main([str(folder)]) == 0
    assert "not compared with the data (--data)" in capsys.readouterr().out


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_any_flipped_bit_of_any_file_is_found(
    caches: dict[str, Path], tmp_path: Path, compression: Compression
) -> None:
    cache = shutil.copytree(caches[name_of("topk", compression)], tmp_path / "cache")
    rng, files = random.Random(0), sorted(cache.iterdir())
    assert len(files) == 18
    for path in files:
        original = path.read_bytes()
        telling = {0, 7, 100, 148, 200, 600, len(original) // 2, len(original) - 700, len(original) - 1}
        telling |= {rng.randrange(len(original)) for _ in range(12)}
        for position in sorted(p for p in telling if 0 <= p < len(original)):
            damaged = bytearray(original)
            damaged[position] ^= 1 << rng.randrange(8)
            path.write_bytes(damaged)
            with pytest.raises(DataError, match=path.name.removesuffix(".sha256").split(".")[0]):
                verify_cache(cache)
        path.write_bytes(original)
    verify_cache(cache)


def test_every_byte_of_an_unfinished_cache_counts(cache: Path) -> None:
    """Without the listing too: of one shard, all bytes of its index and some of its tar."""
    for name in ("shards.json", "shards.json.sha256", "run.json"):
        (cache / name).unlink()
    rng = random.Random(1)
    for path, positions in ((cache / f"{SHARD}.idx.npy", None), (cache / f"{SHARD}.tar", 60)):
        original = path.read_bytes()
        for position in range(len(original)) if positions is None else rng.sample(range(len(original)), positions):
            damaged = bytearray(original)
            damaged[position] ^= 1 << rng.randrange(8)
            path.write_bytes(damaged)
            with pytest.raises(DataError, match=SHARD):
                verify_cache(cache)
        path.write_bytes(original)
    with pytest.raises(DataError, match=r"is not finished: .* its 7 shards are all well"):
        verify_cache(cache)


@pytest.mark.parametrize("change", [lambda raw: raw[:-1], lambda raw: raw + b"\0", lambda raw: b""])
def test_any_file_too_short_or_too_long_is_found(cache: Path, change: Callable[[bytes], bytes]) -> None:
    for path in sorted(cache.iterdir()):
        original = path.read_bytes()
        path.write_bytes(change(original))
        with pytest.raises(DataError):
            verify_cache(cache)
        path.write_bytes(original)


def test_missing_and_foreign_files_are_named(dataset: PackedDataset, cache: Path) -> None:
    for path in sorted(cache.iterdir()):
        original = path.read_bytes()
        path.unlink()
        for sample in (None, 1):
            with pytest.raises(DataError, match=path.name.replace(".", r"\.")):
                verify_cache(cache, None, sample)
        path.write_bytes(original)
    for name in ("shard-00009-000.tar", "notes.txt", "shard-00000-000.tar.0a.tmp", ".work"):
        (cache / name).touch()
        with pytest.raises(DataError, match=f"{name} is not a file of this cache"):
            verify_cache(cache)
        (cache / name).unlink()
    verify_cache(cache, dataset)


def test_an_unfinished_cache_is_checked_as_far_as_it_has_come(
    dataset: PackedDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    info, cache = make_info(dataset), tmp_path / "cache"
    begin_cache(cache, info)
    for number in (5, 2):
        write_shard(cache, dataset, info, number)
    (cache / "shard-00000-000.tar").touch()
    assert verify.main([str(cache), "--data", str(dataset.folder)]) == 1
    error = capsys.readouterr().err
    assert "shards.json.sha256, written last, is missing; its 2 of 7 shards are all well" in error
    assert error.count("\n") == 1
    (cache / "shard-00000-008.tar").touch()
    with pytest.raises(DataError, match=r"shard-00000-008.tar is not a file of this cache"):
        verify_cache(cache, dataset)


def test_other_data_and_tokenizers_are_named(dataset: PackedDataset, caches: dict[str, Path], tmp_path: Path) -> None:
    other = make_data(tmp_path / "other")
    with pytest.raises(DataError, match=rf"says data {dataset.fingerprint}, --data .*other has {other.fingerprint}"):
        verify_cache(caches["topk"], other)
    info = dataclasses.replace(make_info(dataset), tokenizer_sha256="e" * 64)
    begin_cache(tmp_path / "cache", info)
    has = dataset.manifest.tokenizer_sha256
    with pytest.raises(DataError, match=rf"says tokenizer {'e' * 64}, --data .* has {has}; name the data"):
        verify_cache(tmp_path / "cache", dataset)


Parts = tuple[str, np.ndarray, dict[str, np.ndarray]]
Edit = Callable[[str, np.ndarray, dict[str, np.ndarray]], Parts | bytes]


def rewrite(cache: Path, dataset: PackedDataset, edit: Edit, info: TeacherInfo) -> None:
    """Replaces a sample of the first shard by what `edit` makes of it; every digest is as it should be."""
    listing = Listing.load(cache)
    shard = OpenShard(cache, "shard-00000-000", "", info.digest_key)
    for index in range(3):
        sample = dataset[index]
        positions = info.positions.select(sample)
        made: Parts | bytes = (sample.key, positions, make_signal(info.signal, sample.key, positions).to_members())
        if index == 1:
            made = edit(*made)
        raw = made if isinstance(made, bytes) else encode_cached_sample(*made, info.compression)
        shard.append(raw, len(positions) if isinstance(made, bytes) else len(made[1]))
    listing.shards[0] = dataclasses.replace(shard.close())
    shard.publish()
    relist(cache, listing)


def relist(cache: Path, listing: Listing) -> None:
    (cache / "shards.json").write_bytes(listing.to_bytes())
    (cache / "shards.json.sha256").write_bytes(listing_mark(listing.to_bytes()))


def _without_last(key: str, positions: np.ndarray, members: dict) -> Parts:
    return key, positions[:-1], {name: array[:-1] for name, array in members.items()}


def _shifted(key: str, positions: np.ndarray, members: dict) -> Parts:
    return key, positions + np.int32(1), members


def _other_key(key: str, positions: np.ndarray, members: dict) -> Parts:
    return "00000-000009", positions, members


def _same_key(key: str, positions: np.ndarray, members: dict) -> Parts:
    return "00000-000000", positions, members


def _changed(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Edit:
    return lambda key, positions, members: (key, positions, members | {name: change(members[name])})


def _set(array: np.ndarray, value: float) -> np.ndarray:
    copy = array.copy()
    copy[2] = value
    return copy


def _extra_member(key: str, positions: np.ndarray, members: dict) -> Parts:
    return key, positions, members | {"more.npy": positions}


def _reordered(key: str, positions: np.ndarray, members: dict) -> Parts:
    return key, positions, dict(reversed(members.items()))


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize(
    ("kind", "edit", "message"),
    [
        ("topk", _without_last, r"sample 1 lacks position \d+; its 7 positions are not the 8 that the data has"),
        ("topk", _shifted, r"sample 1 (lacks|holds) position \d+; its 8 positions are not the 8"),
        ("topk", _other_key, "sample 1 has key 00000-000009, the data's sample 1 has 00000-000001"),
        ("topk", _extra_member, r"a sample of \d+ bytes at byte \d+, where 8 positions take at most \d+"),
        ("topk", _reordered, "not a sample of a teacher cache .its members are"),
        ("topk", _changed("log_probs.npy", lambda a: a + np.float16(1)), "no topk signal .log_probs.npy and tail.npy"),
        ("topk", _changed("log_probs.npy", lambda a: a[:, ::-1].copy()), "no topk signal .log_probs.npy does not desc"),
        ("topk", _changed("tail.npy", lambda a: _set(a, np.nan)), "do not make up one distribution"),
        ("topk", _changed("ids.npy", lambda a: a | 255), "no topk signal .ids from"),
        ("topk", _changed("ids.npy", lambda a: a[:, :-1].copy()), "no topk signal .ids.npy is uint8"),
        ("sampled", _changed("counts.npy", lambda a: _set(a, 200)), "no sampled signal .counts.npy does not sum to 9"),
        ("sampled", _changed("entropy.npy", lambda a: _set(a, np.inf)), "no sampled signal .entropy.npy holds a value"),
        ("sampled", _changed("entropy.npy", lambda a: _set(a, 5.8)), "entropy.npy holds a value that is none of 320"),
        ("hidden", _changed("hidden.npy", lambda a: _set(a, 0x7F80)), "holds a hidden state that is not finite"),
        ("hidden", _changed("hidden.npy", lambda a: a.view(np.float16)), "no hidden signal .hidden.npy is float16"),
        ("int8", _changed("scale.npy", lambda a: _set(a, np.inf)), "no hidden signal .scale.npy"),
        ("int8", _changed("scale.npy", lambda a: _set(a, 3e38)), "holds a hidden state that is not finite"),
    ],
)  # fmt: skip
def test_samples_with_right_digests_that_do_not_fit(
    dataset: PackedDataset,
    caches: dict[str, Path],
    tmp_path: Path,
    kind: str,
    edit: Edit,
    message: str,
    compression: Compression,
) -> None:
    cache = shutil.copytree(caches[name_of(kind, compression)], tmp_path / "cache")
    info = make_info(dataset, kind, 2, compression)
    rewrite(cache, dataset, lambda *parts: parts, info)
    verify_cache(cache, dataset)
    rewrite(cache, dataset, edit, info)
    with pytest.raises(DataError, match=message):
        verify_cache(cache, dataset)


Wrap = Callable[[bytes], bytes]


def _wrapped(wrap: Wrap, compression: Compression = "zstd") -> Edit:
    """Each member's content as `wrap` makes it."""

    def edit(key: str, positions: np.ndarray, members: dict[str, np.ndarray]) -> bytes:
        arrays, suffix = {"positions.npy": positions, **members}, ".zst" if compression == "zstd" else ""
        contents = {f"{key}.{n}{suffix}": wrap(encode_member(array, compression)) for n, array in arrays.items()}
        return b"".join(tar_member(name, content) for name, content in contents.items())

    return edit


@pytest.mark.parametrize(
    ("wrap", "message"),
    [
        (lambda frame: frame[:-1], "positions.npy is not one zstd frame"),
        (lambda frame: frame + frame, "positions.npy is not one zstd frame"),
        (lambda frame: frame + bytes(3), "positions.npy is not one zstd frame"),
        (lambda frame: zstandard.compress(bytes(1 << 20)), "positions.npy: a zstd frame of 1048576 bytes where at"),
        (zstandard.decompress, "positions.npy is not one zstd frame"),
    ],
)
def test_frames_that_are_none_or_promise_too_much(
    dataset: PackedDataset, cache: Path, wrap: Wrap, message: str
) -> None:
    rewrite(cache, dataset, _wrapped(wrap), make_info(dataset, "topk", 2))
    for data in (None, dataset):
        with pytest.raises(DataError, match=f"sample 1: not a sample of a teacher cache .{message}"):
            verify_cache(cache, data)


def test_frames_of_another_level_or_version_pass(dataset: PackedDataset, cache: Path) -> None:
    before = (cache / "shard-00000-000.tar").read_bytes()
    again = _wrapped(lambda frame: zstandard.compress(zstandard.decompress(frame), 19))
    rewrite(cache, dataset, again, make_info(dataset, "topk", 2))
    assert (cache / "shard-00000-000.tar").read_bytes() != before
    verify_cache(cache, dataset)


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_bytes_after_a_members_content_are_found(
    dataset: PackedDataset, caches: dict[str, Path], tmp_path: Path, compression: Compression
) -> None:
    cache, info = tmp_path / "cache", make_info(dataset, "topk", 2, compression)
    shutil.copytree(caches[name_of("topk", compression)], cache)
    rewrite(cache, dataset, lambda *parts: _wrapped(bytes, compression)(*parts)[:-1] + b"x", info)
    with pytest.raises(DataError, match="holds the right arrays but not byte for byte as this format writes them"):
        verify_cache(cache, dataset)


def test_two_samples_of_one_key_are_found_without_the_data(dataset: PackedDataset, cache: Path) -> None:
    rewrite(cache, dataset, _same_key, make_info(dataset, "topk", 2))
    with pytest.raises(DataError, match=r"tar: sample 1 has the key 00000-000000 of an earlier one"):
        verify_cache(cache)


def _drop(listing: Listing) -> None:
    del listing.shards[-1]


def _reverse(listing: Listing) -> None:
    listing.shards.reverse()


def _entry(**changes: object) -> Callable[[Listing], None]:
    def edit(listing: Listing) -> None:
        listing.shards[0] = dataclasses.replace(listing.shards[0], **changes)

    return edit


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (_drop, "shards.json does not list the data's 7 shards: shard-00004-003 is in one of the two only"),
        (_reverse, "shards.json does not list the data's 7 shards: in another order"),
        (_entry(num_samples=4), "shards.json: shard-00000-000 has 4 samples, the data's 3"),
        (_entry(num_tokens=4), r"idx.npy: \d+ positions, shards.json says 4"),
        (_entry(size=4), r"idx.npy: \d+ bytes in the tar, shards.json says 4"),
        (_entry(index_size=4), r"idx.npy: \d+ bytes in the index, shards.json says 4"),
        (_entry(sha256="0" * 64), "shard-00000-000.tar does not match its sha256"),
        (_entry(index_sha256="0" * 64), "shard-00000-000.idx.npy does not match its sha256"),
        (_entry(name="../shard"), "lists a shard '../shard' that the cache's writer did not name"),
        (_entry(sha256="x" * 64), "did not name"),
        (_entry(size="4"), "is not a listing of shards .a size of shard-00000-000 is not a whole number"),
    ],
)
def test_a_listing_that_does_not_match_the_shards(
    dataset: PackedDataset, cache: Path, edit: Callable[[Listing], None], message: str
) -> None:
    listing = Listing.load(cache)
    edit(listing)
    relist(cache, listing)
    with pytest.raises(DataError, match=message):
        verify_cache(cache, dataset)


@pytest.mark.parametrize("raw", [b"[" * 100_000, b"7", b"[]", b"{}", b'{"format_version": 3, "shards": [7]}', b"\xff"])
def test_a_listing_that_is_none_is_refused_though_its_mark_fits(cache: Path, raw: bytes) -> None:
    (cache / "shards.json").write_bytes(raw)
    (cache / "shards.json.sha256").write_bytes(listing_mark(raw))
    with pytest.raises(DataError, match=r"shards.json is not a listing of shards"):
        verify_cache(cache)


def test_settings_that_do_not_match_the_positions(dataset: PackedDataset, cache: Path) -> None:
    """A teacher.json that claims more than the shards hold, and a listing and digests that were made for it."""
    listing, info = Listing.load(cache), make_info(dataset, "topk")
    info.save(cache)
    relist(cache, dataclasses.replace(listing, teacher_sha256=info.digest_key.hex()))
    with pytest.raises(DataError, match="sample 0 is damaged or of another cache"):
        verify_cache(cache)
    shards = []
    for entry in listing.shards:
        rekey(cache, entry.name, info.digest_key)
        index_sha256 = hashlib.sha256((cache / entry.index_name).read_bytes()).hexdigest()
        shards.append(dataclasses.replace(entry, index_sha256=index_sha256))
    relist(cache, Listing(info.digest_key.hex(), shards))
    verify_cache(cache)
    with pytest.raises(DataError, match=r"sample 0 lacks position 0; .* under the policy all"):
        verify_cache(cache, dataset)


def test_a_tar_that_goes_on_after_its_last_sample(dataset: PackedDataset, cache: Path) -> None:
    path = cache / f"{SHARD}.tar"
    raw = path.read_bytes()
    path.write_bytes(raw[: -len(END_OF_TAR)] + b"x" * len(END_OF_TAR))
    with pytest.raises(DataError, match="does not end after its last sample"):
        verify_cache(cache)
    with pytest.raises(DataError, match="does not end after its last sample"):
        verify_cache(cache, dataset, 1)


def test_a_sampled_check_says_what_it_covered_and_spreads(
    dataset: PackedDataset, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert verify.main([str(cache), "--data", str(dataset.folder), "--sample", "4", "--seed", "3"]) == 0
    assert "the content of 4 of 16 samples only (--seed 3)" in capsys.readouterr().out
    raw = bytearray((cache / "shard-00000-000.tar").read_bytes())
    for row in np.load(cache / "shard-00000-000.idx.npy"):
        raw[int(row["offset"]) + 700] ^= 1
    (cache / "shard-00000-000.tar").write_bytes(raw)
    for seed in range(5):  # the first of eight equal stretches holds damaged samples only
        with pytest.raises(DataError, match=r"shard-00000-000.tar: sample \d is damaged or of another cache"):
            verify_cache(cache, None, 8, seed)


def test_run_json_is_sealed(cache: Path) -> None:
    facts = json.loads((cache / "run.json").read_bytes())
    assert facts["host"] == "here" and facts["seconds"] == 1.5
    (cache / "run.json").write_bytes(seal({"host": "there"}))
    verify_cache(cache)
    (cache / "run.json").write_bytes((cache / "run.json").read_bytes().replace(b"there", b"where"))
    with pytest.raises(DataError, match=r"run.json does not match the \"sha256\" in it"):
        verify_cache(cache)


def show(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert cache_view.main([str(argument) for argument in arguments]) == 0
    return capsys.readouterr().out


def refusal(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert cache_view.main([str(argument) for argument in arguments]) == 1
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1
    return captured.err


def test_inspect_shows_positions_tokens_and_guesses(
    dataset: PackedDataset, caches: dict[str, Path], tiny_tokenizer: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = ("--data", dataset.folder, "--tokenizer", tiny_tokenizer)
    out = show(capsys, caches["topk"], 1, *data, "--positions", 3, "--guesses", 2)
    positions = make_info(dataset, "topk", 2).positions.select(dataset[1])
    length = len(dataset[1].input_ids)
    teacher, sample = out.splitlines()[:2]
    assert teacher == (
        "teacher tiny teacher in float32, signal topk, k 4, vocab_size 320, positions past_budget with min_budget 2, "
        "compression zstd"
    )
    assert sample == "sample 1: key 00000-000001, number 1 of shard-00000-000.tar"
    assert f"8 positions of {length} tokens: {positions[0]}-" in out
    lines = re.findall(r"^    (\d+): after ('.*'|\".*\") comes (.+); teacher: (.+), all others (.+)%$", out, re.M)
    assert [int(line[0]) for line in lines] == [positions[0], positions[3], positions[7]]
    assert all(line[3].count("%") == 2 and 50 < float(line[4]) < 99 for line in lines)
    ids = show(capsys, caches["topk"], 1, "--data", dataset.folder, "--positions", 3, "--guesses", 2)
    after = int(positions[3])
    assert f"    {after}: after {dataset[1].input_ids[after]} comes {dataset[1].input_ids[after + 1]}; teacher: " in ids
    signal = make_signal(SPECS["topk"], "00000-000001", positions)
    assert f"teacher: {signal.ids[3, 0]} {np.exp(np.float64(signal.log_probs[3, 0])):.2%}, {signal.ids[3, 1]} " in ids


def test_inspect_of_the_other_signals_and_without_data(
    caches: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    out = show(capsys, caches["sampled"], 0, 3)
    first, second = out.split("sample 3: key 00000-000003")
    lines = re.findall(r"\d+: teacher: \d+ (11\.11|22\.22|33\.33)%.*, entropy (\d\.\d+) nats$", first, re.M)
    assert len(lines) == 8 == first.count("teacher: ") and len({entropy for _, entropy in lines}) == 8
    assert "0 positions: none" in second and "teacher: " not in second
    for kind in ("hidden", "int8"):
        assert re.search(r"2: hidden state of norm [\d.]+, -[\d.]+ to [\d.]+", show(capsys, caches[kind]))


def test_inspect_counts_over_the_data_or_over_what_is_there(
    dataset: PackedDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    info, cache = make_info(dataset), tmp_path / "cache"
    begin_cache(cache, info)
    write_shard(cache, dataset, info, 2)
    assert "key 00000-000006, number 0 of shard-00000-002" in show(capsys, cache)
    assert "key 00000-000007, number 1 of" in show(capsys, cache, 7, "--data", dataset.folder)
    assert "there is no sample 0 in the 1 shards of" in refusal(capsys, cache, 0, "--data", dataset.folder)
    assert "there is no sample 3 in the 1 shards of" in refusal(capsys, cache, 0, 3)


def test_inspect_refuses_another_tokenizer_in_one_line(
    dataset: PackedDataset, caches: dict[str, Path], tiny_tokenizer: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    content = json.loads((tiny_tokenizer / "tokenizer.json").read_text())
    content["added_tokens"].pop()
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    assert "has fingerprint" in refusal(capsys, caches["topk"], "--tokenizer", tmp_path)
    assert "there is no" in refusal(capsys, caches["topk"], "--tokenizer", tmp_path / "none")
    shutil.copy(tiny_tokenizer / "tokenizer.json", tmp_path / "other.json")
    told = "other.json: a tokenizer is read as tokenizer.json; name the folder that has it"
    assert told in refusal(capsys, caches["topk"], "--tokenizer", tmp_path / "other.json")
    (tmp_path / "tokenizer.json").write_text("[]")
    assert "has no tokenizer that can be read" in refusal(capsys, caches["topk"], "--tokenizer", tmp_path)
    assert "is no teacher cache" in refusal(capsys, tmp_path)


@pytest.mark.slow
def test_the_commands_run(dataset: PackedDataset, caches: dict[str, Path]) -> None:
    for command, due in ((("verify",), "all well"), (("inspect", "0"), "sample 0: key")):
        run = [sys.executable, "-m", f"pipeline.teacher.{command[0]}", str(caches["topk"]), *command[1:]]
        done = subprocess.run(run, capture_output=True, text=True, timeout=60, cwd=Path(__file__).parents[2])
        assert done.returncode == 0 and due in done.stdout, done.stderr
