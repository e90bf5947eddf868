"""Bad input that is refused before torch is imported, each with one line that names it."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from pipeline.config import TrainRunConfig, parse_cli
from pipeline.data.dataset import PackedDataset
from pipeline.errors import UserError
from pipeline.teacher.cache import TeacherCache
from pipeline.teacher.cache_format import PositionPolicy, TeacherInfo
from pipeline.teacher.cache_writer import CacheShardWriter, begin_cache, complete_cache
from pipeline.teacher.signals import HiddenSpec, TopKSpec
from pipeline.training.cached_teacher import CachedTeacher, check_teacher
from pipeline.training.preflight import preflight
from pipeline.training.run_folder import RunFolder, check_base_fingerprint, describe_run
from tests.teacher.cache_folders import make_signal
from tests.training.synthetic import make_data, make_model

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("preflight")
    make_data(root / "data", make_model(root / "model"), [[48], [30, 18]], seq_len=48)
    (root / "zero2.json").write_text('{"zero_optimization": {"stage": 2}}')
    return root


def check(inputs: Path, output: Path, *flags: str, **replaced: object) -> None:
    named = {"model": inputs / "model", "data": inputs / "data", "ds_config": inputs / "zero2.json"} | replaced
    arguments = [f"--{name}={value}" for name, value in named.items()]
    arguments += [
        f"--output={output}",
        "--window.budgets=[8,16]",
        "--window.sinks=[0,4]",
        "--train.global_batch_size=4",
    ]
    preflight(parse_cli(TrainRunConfig, [*arguments, *flags]))


def refused(inputs: Path, output: Path, *flags: str, **replaced: object) -> str:
    with pytest.raises(UserError) as error:
        check(inputs, output, *flags, **replaced)
    message = str(error.value)
    assert "\n" not in message
    return message


def test_good_input_passes(inputs, tmp_path):
    check(inputs, tmp_path / "run")


def test_missing_model(inputs, tmp_path):
    assert "--model /nowhere/model does not exist" in refused(inputs, tmp_path / "run", model="/nowhere/model")
    empty = tmp_path / "empty"
    empty.mkdir()
    assert f"--model {empty} has no config.json" in refused(inputs, tmp_path / "run", model=empty)


def test_tokenizer_that_the_data_was_not_made_with(inputs, tmp_path):
    other = make_model(tmp_path / "other")
    vocabulary = json.loads((other / "tokenizer.json").read_text())
    vocabulary["model"]["vocab"]["extra"] = 1000
    (other / "tokenizer.json").write_text(json.dumps(vocabulary))
    message = refused(inputs, tmp_path / "run", model=other)
    assert "is not the tokenizer of --model" in message and str(other) in message and str(inputs / "data") in message


def test_samples_too_short_for_any_budget(inputs, tmp_path):
    message = refused(inputs, tmp_path / "run", "--window.budgets=[47,64]")
    assert "sequence length 48, below the smallest lossless budget 47 + 2" in message
    check(inputs, tmp_path / "run", "--window.budgets=[46,64]")


def test_unknown_setting(inputs, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("train: {learning_rat: 0.1}\n")
    assert "learning_rat" in refused(inputs, tmp_path / "run", f"--config={recipe}")


def test_batch_that_does_not_divide(inputs, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    message = refused(inputs, tmp_path / "run")
    assert "--train.global_batch_size 4 is not a multiple of --train.micro_batch_size 1 x 3" in message


def test_ranks_that_share_a_sample_by_heads_are_limited_by_them_and_by_tokens_are_not(inputs, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    flags = "--sequence_parallel_size=3", "--train.loss=ce"
    assert "--sequence_parallel_size 3: the model's" in refused(inputs, tmp_path / "run", *flags)
    check(inputs, tmp_path / "run", *flags, "--sequence_parallel_mode=halo")


def test_halo_mode_does_not_run_the_teacher(inputs, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    flags = "--sequence_parallel_size=2", "--sequence_parallel_mode=halo"
    message = refused(inputs, tmp_path / "run", *flags)
    assert "--sequence_parallel_mode halo cannot run the teacher in training, as no --teacher_cache asks" in message
    make_cache(inputs, tmp_path / "cache")
    cached = f"--teacher_cache={tmp_path / 'cache'}"
    check(inputs, tmp_path / "run", *flags, cached)
    assert "as --teacher_fallback online asks" in refused(
        inputs, tmp_path / "run", *flags, cached, "--teacher_fallback=online"
    )


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('{"train_batch_size": 8}', '"train_batch_size": 8, but --train.global_batch_size says 4'),
        ('{"gradient_clipping": 0.5}', '"gradient_clipping": 0.5, but --train.clip_grad_norm says 1.0'),
        ('{"train_micro_batch_size_per_gpu": 2}', "but --train.micro_batch_size says 1"),
        ('{"gradient_accumulation_steps": 2}', '"gradient_accumulation_steps": 2, but --train.global_batch_size / '),
        ('{"bf16": {"enabled": true}}', 'enables "bf16"'),
        ('{"fp16": {"enabled": true}}', "--train.base_dtype"),
        ('{"optimizer": {"type": "Adam"}}', 'sets "optimizer", which --train.learning_rate'),
        ('{"scheduler": {}}', 'sets "scheduler"'),
        ("{", "is not JSON"),
        ("[]", "must hold a JSON object, found list"),
        ("\udcff", "is not JSON"),
        ('{"zero_optimization": 2}', '"zero_optimization" must be an object, found 2'),
    ],
)
def test_deepspeed_json_that_is_wrong_or_contradicts_a_flag(inputs, tmp_path, content, expected):
    path = tmp_path / "ds.json"
    path.write_text(content, errors="surrogateescape")
    message = refused(inputs, tmp_path / "run", ds_config=path)
    assert expected in message and str(path) in message


def test_deepspeed_json_that_agrees_passes(inputs, tmp_path):
    path = tmp_path / "ds.json"
    path.write_text('{"train_batch_size": 4, "gradient_clipping": "auto", "bf16": {"enabled": false}}')
    check(inputs, tmp_path / "run", ds_config=path)
    assert "does not exist" in refused(inputs, tmp_path / "run", ds_config=tmp_path / "missing.json")


def test_the_published_deepspeed_files_and_recipes_pass(inputs, tmp_path):
    for path in sorted((REPOSITORY / "ds_configs").glob("*.json")):
        check(inputs, tmp_path / "run", ds_config=path)
    for path in sorted((REPOSITORY / "launchers" / "recipes").glob("*.yaml")):
        small = ["--window.budgets=[8,16]", "--window.sinks=[0,4]"]  # samples here have 48 tokens
        if "retained" in yaml.safe_load(path.read_text()).get("window", {}):
            small.append("--window.retained=[4]")
        check(inputs, tmp_path / "run", f"--config={path}", *small)


def test_data_that_is_missing_or_damaged(inputs, tmp_path):
    assert "/nowhere does not exist" in refused(inputs, tmp_path / "run", data="/nowhere")
    data = make_data(tmp_path / "data", inputs / "model", [[48]], seq_len=48)
    shard = next(data.glob("*.tar"))
    shard.write_bytes(shard.read_bytes()[:-512])
    assert shard.name in refused(inputs, tmp_path / "run", data=data)


def claim(inputs: Path, output: Path, *flags: str, fingerprint: str | None = None) -> None:
    arguments = [f"--model={inputs / 'model'}", f"--data={inputs / 'data'}", f"--ds_config={inputs / 'zero2.json'}"]
    arguments += [
        f"--output={output}",
        "--window.budgets=[8,16]",
        "--window.sinks=[0,4]",
        "--train.global_batch_size=4",
    ]
    plan = preflight(parse_cli(TrainRunConfig, [*arguments, *flags]))
    describe_run(plan.config, fingerprint or plan.stream.dataset.fingerprint, "base")


def make_cache(inputs: Path, cache: Path, **changes: object) -> None:
    """A teacher cache of the data's two samples with made-up signals."""
    dataset = PackedDataset(inputs / "data")
    facts = {
        "teacher_name": "model",
        "base_dtype": "bfloat16",
        "teacher_sha256": "ab" * 32,
        "tokenizer_sha256": dataset.manifest.tokenizer_sha256,
        "data_sha256": dataset.fingerprint,
        "signal": HiddenSpec("bfloat16", 32),
        "compression": "none",
        "forward_chunk": None,
        "chunk_size": None,
        "positions": PositionPolicy("past_budget", 8),
    }
    info = TeacherInfo(**facts | changes)
    begin_cache(cache, info)
    for entry in dataset.manifest.shards:
        with CacheShardWriter(cache, entry) as writer:
            for index in range(entry.num_samples):
                positions = info.positions.select(dataset[index])
                writer.write(dataset[index].key, positions, make_signal(info.signal, dataset[index].key, positions))
    assert complete_cache(cache, dataset)


def test_a_teacher_cache_that_serves_the_run_passes(inputs, tmp_path):
    make_cache(inputs, tmp_path / "cache")
    check(inputs, tmp_path / "run", f"--teacher_cache={tmp_path / 'cache'}")


def test_a_teacher_cache_of_other_data_or_another_tokenizer(inputs, tmp_path):
    other = make_data(tmp_path / "data", inputs / "model", [[48]] * 3, seq_len=48)
    make_cache(inputs, tmp_path / "cache")
    message = refused(inputs, tmp_path / "run", f"--teacher_cache={tmp_path / 'cache'}", data=other)
    for fingerprint in (PackedDataset(inputs / "data").fingerprint, PackedDataset(other).fingerprint):
        assert fingerprint in message
    make_cache(inputs, tmp_path / "tokens", tokenizer_sha256="cd" * 32)
    message = refused(inputs, tmp_path / "run", f"--teacher_cache={tmp_path / 'tokens'}")
    assert "cd" * 32 in message and PackedDataset(inputs / "data").manifest.tokenizer_sha256 in message
    message = refused(inputs, tmp_path / "run", f"--teacher_cache={tmp_path / 'nowhere'}")
    assert "is no teacher cache" in message


def test_a_teacher_cache_that_does_not_cover_the_windows(inputs, tmp_path):
    make_cache(inputs, tmp_path / "cache", positions=PositionPolicy("past_budget", 9))
    flag = f"--teacher_cache={tmp_path / 'cache'}"
    message = refused(inputs, tmp_path / "run", flag)
    assert "past a lossless budget of 9 tokens" in message and "--window.budgets [8, 16] may draw 8" in message
    check(inputs, tmp_path / "run", flag, "--window.budgets=[9,16]")
    check(inputs, tmp_path / "run", flag, "--window.retained=[1,4]")
    message = refused(inputs, tmp_path / "run", flag, "--window.retained=[0,4]")
    assert "--window.budgets [8, 16] may draw 8" in message
    make_cache(inputs, tmp_path / "later", positions=PositionPolicy("past_budget", 11))
    message = refused(inputs, tmp_path / "run", f"--teacher_cache={tmp_path / 'later'}", "--window.retained=[2]")
    assert "[8, 16] with --window.retained [2] may draw 10; give --window.budgets of at least 9, or" in message


def test_a_teacher_cache_that_lacks_a_shard(inputs, tmp_path):
    make_cache(inputs, tmp_path / "cache")
    flag, entry = f"--teacher_cache={tmp_path / 'cache'}", PackedDataset(inputs / "data").manifest.shards[0]
    for name in ("shards.json", "shards.json.sha256", entry.index_name):
        (tmp_path / "cache" / name).unlink()
    message = refused(inputs, tmp_path / "run", flag)
    assert "lacks 1 of the 1 shards" in message and entry.name in message and "--teacher_fallback online" in message
    check(inputs, tmp_path / "run", flag, "--teacher_fallback=online")


def test_a_teacher_cache_without_use(inputs, tmp_path):
    make_cache(inputs, tmp_path / "cache")
    message = refused(inputs, tmp_path / "run", f"--teacher_cache={tmp_path / 'cache'}", "--train.loss=ce")
    assert "--teacher_cache" in message and "--train.loss ce needs no teacher" in message


def test_a_teacher_cache_of_a_model_of_other_sizes(inputs, tmp_path):
    make_cache(inputs, tmp_path / "hidden", signal=HiddenSpec("bfloat16", 16))
    message = refused(inputs, tmp_path / "run", f"--teacher_cache={tmp_path / 'hidden'}")
    assert f"has signals with hidden_size 16, --model {inputs / 'model'} has 32" in message
    for vocab_size in (50, 200):
        cache = tmp_path / f"topk {vocab_size}"
        make_cache(inputs, cache, signal=TopKSpec(2, vocab_size))
        message = refused(inputs, tmp_path / "run", f"--teacher_cache={cache}")
        assert f"has signals with vocab_size {vocab_size}, --model {inputs / 'model'} has 97" in message


def test_a_teacher_cache_behind_a_url_and_a_fallback_without_a_cache(inputs, tmp_path):
    message = refused(inputs, tmp_path / "run", "--teacher_cache=s3://bucket/cache")
    assert "--teacher_cache s3:/bucket/cache: a teacher cache is read from a file system, not from a URL" in message
    message = refused(inputs, tmp_path / "run", "--teacher_fallback=online")
    assert "--teacher_fallback online: goes with --teacher_cache, which is not given" in message


def test_a_teacher_cache_of_another_teacher_shows_both(inputs, tmp_path):
    make_cache(inputs, tmp_path / "cache")
    arguments = [f"--model={inputs / 'model'}", "--data=d", "--ds_config=d", "--output=o"]
    config = parse_cli(TrainRunConfig, [*arguments, f"--teacher_cache={tmp_path / 'cache'}"])
    teacher = CachedTeacher(TeacherCache(tmp_path / "cache", PackedDataset(inputs / "data")), "error")
    check_teacher(config, teacher, "ab" * 32)
    teacher.cache.info = dataclasses.replace(teacher.cache.info, teacher_name="two\nlines")
    with pytest.raises(UserError) as error:
        check_teacher(config, teacher, "12" * 32)
    assert "ab" * 32 in str(error.value) and "12" * 32 in str(error.value) and "\n" not in str(error.value)


def test_output_folder_of_something_else(inputs, tmp_path):
    (tmp_path / "thesis.txt").write_text("")
    assert f"--output {tmp_path} is not empty and holds no run" in refused(inputs, tmp_path)


def test_a_run_goes_on_with_free_settings_changed(inputs, tmp_path):
    claim(inputs, tmp_path / "run")
    check(inputs, tmp_path / "run", "--train.save_every=7", "--train.micro_batch_size=2", "--window.inference_window=9",
          "--train.loader_workers=5", "--train.topk_tail=renormalise", f"--data_cache={tmp_path}")  # fmt: skip


def test_a_run_that_is_older_than_a_setting_goes_on_with_its_default(inputs, tmp_path):
    claim(inputs, tmp_path / "run")
    path = tmp_path / "run" / "run.json"
    identity = json.loads(path.read_text())
    del identity["settings"]["train.shuffle_block_shards"]
    identity["settings"]["train.topk_tail"] = "renormalise"  # of a run that fixed what is free now
    path.write_text(json.dumps(identity))
    check(inputs, tmp_path / "run")
    message = refused(inputs, tmp_path / "run", "--train.shuffle_block_shards=3")
    assert "--train.shuffle_block_shards 3 differs from 16" in message
    identity["settings"]["train.unheard_of"] = 1
    path.write_text(json.dumps(identity))
    assert "--train.unheard_of None differs from 1" in refused(inputs, tmp_path / "run")


@pytest.mark.parametrize(
    "flag", ["--train.max_steps=7", "--train.seed=1", "--train.global_batch_size=8", "--window.sinks=[0]",
             "--train.base_dtype=float32", "--train.loss=ce", "--train.shuffle=block",
             "--train.shuffle_block_shards=3"]
)  # fmt: skip
def test_a_run_does_not_go_on_with_other_mathematics(inputs, tmp_path, flag):
    claim(inputs, tmp_path / "run")
    message = refused(inputs, tmp_path / "run", flag)
    name, value = flag.split("=")
    assert f"{name} {value} differs from" in message and str(tmp_path / "run") in message


def test_a_run_goes_on_with_the_same_data_behind_a_url(inputs, tmp_path):
    claim(inputs, tmp_path / "run")
    url = (inputs / "data").as_uri()
    check(inputs, tmp_path / "run", f"--data_cache={tmp_path / 'cache'}", data=url)
    message = refused(inputs, tmp_path / "run", "--data_cache_bytes=100", data=url)
    assert "--data_cache_bytes 100 is less than" in message and url in message


def test_a_run_does_not_go_on_with_another_mixture(inputs, tmp_path):
    claim(inputs, tmp_path / "run")
    message = refused(inputs, tmp_path / "run", "--train.mixture={data: 2}")
    assert "--train.mixture {'data': 2.0} differs from None" in message
    assert "names the source 'code'; the data has data" in refused(
        inputs, tmp_path / "new", "--train.mixture={code: 1}"
    )


def test_a_run_does_not_go_on_with_other_data_or_when_told_never(inputs, tmp_path):
    claim(inputs, tmp_path / "run", fingerprint="f" * 64)
    assert "is not the data of the run" in refused(inputs, tmp_path / "run")
    assert "--resume auto" in refused(inputs, tmp_path / "run", "--resume=never")
    assert not list(RunFolder(tmp_path / "run").checkpoints.glob("*"))


def test_a_run_does_not_go_on_with_another_base(inputs, tmp_path):
    claim(inputs, tmp_path / "run")
    arguments = [f"--model={inputs / 'model'}", "--data=d", "--ds_config=d", f"--output={tmp_path / 'run'}"]
    config = parse_cli(TrainRunConfig, arguments)
    check_base_fingerprint(config, "base")
    with pytest.raises(UserError, match="is not the base of the run"):
        check_base_fingerprint(config, "other")


def test_nothing_heavy_is_imported_before_the_checks_are_done():
    code = (
        "import sys, pipeline.training.preflight, pipeline.training.stop_flag\n"
        "sys.exit(' '.join({'torch', 'transformers', 'deepspeed'} & sys.modules.keys()) or 0)"
    )
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=REPOSITORY)
    assert finished.returncode == 0, finished.stderr
