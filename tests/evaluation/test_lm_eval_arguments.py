"""lm-eval's command line: what cannot work is one line before anything is loaded, however it was said."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from lm_eval._cli import HarnessCLI

from pipeline.errors import UserError
from pipeline.evaluation.lm_eval_arguments import answers_file, check_model, read_config
from pipeline.evaluation.lm_eval_examples import example_counter
from tests.distributed.processes import REPOSITORY, environment


def read(*flags):
    return read_config(HarnessCLI()._parser.parse_args(["run", *map(str, flags)]))


def model_args(text):
    return read("--model", "ahn", "--tasks", "t", "--model_args", text)


def test_flags_abbreviated_or_in_a_file_are_seen(tmp_path):
    path = tmp_path / "settings.yaml"
    path.write_text("tasks: [a, 'b,c']\napply_chat_template: true\nlimit: 3\nsamples: {a: [1, 4]}\n")
    path_without = tmp_path / "without.yaml"
    path_without.write_text(path.read_text().replace("limit: 3\n", ""))
    config = read("--model", "ahn", "--config", path_without)
    assert config.tasks == ["a", "b", "c"] and config.apply_chat_template
    count = example_counter(config)
    assert (count("a", 10), count("b", 10)) == (2, 10)
    assert read("--tasks", "a,b", "c", "--apply_chat").apply_chat_template
    for limit, left in ((3, 3), (30, 10), (0.25, 3)):
        assert example_counter(read("--tasks", "a", "--limit", limit))("a", 10) == left


def test_settings_that_cannot_work_are_one_line(tmp_path):
    (tmp_path / "file").touch()
    for flags, message in (
        ((), "--tasks: name some"),
        (("--tasks", "a", "--log_samples"), "Specify --output_path"),
        (("--tasks", "a", "--limit", -1), "--limit -1: must be > 0"),
        (("--tasks", "a", "--config", tmp_path / "no.yaml"), "Config file not found"),
        (("--tasks", "a", "--output_path", tmp_path / "file/out"), "--output_path .*/file/out: cannot be written"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            read(*flags)
        assert "\n" not in str(caught.value)


def test_arguments_of_the_model_that_cannot_work_are_one_line(folder, tmp_path):
    adapter = f"pretrained={folder / 'adapter'}"
    assert check_model(model_args(f"{adapter},window_size=24,dtype=bfloat16,max_length=50")).kind == "adapter"
    for text, message in (
        ("dtype=bf16", "dtype=bf16: must be one of auto, float32, bfloat16"),
        ("num_retained_tokens=few", "num_retained_tokens=few: must be a whole number >= 0"),
        ("window_size=0", "window_size=0: must be a whole number >= 1"),
        ("prefill_chunk=abc", "prefill_chunk=abc: must be a whole number >= 1"),
        ("max_length=0", "max_length=0: must be a whole number >= 2"),
        (
            "foo=1",
            "foo=1: it takes pretrained, tokenizer, base, num_sink_tokens, window_size, num_retained_tokens, dtype",
        ),
        ("device=cpu", "device=cpu: give it as --device"),
        (f"tokenizer={tmp_path}", f"tokenizer {tmp_path} has no tokenizer that can be read"),
    ):
        with pytest.raises(UserError, match=f"--model_args {message}"):
            check_model(model_args(f"{adapter},{text}"))
    for flags in (("--gen_kwargs", "foo=1"), ("--gen_kwargs", "max_gen_toks=0")):
        with pytest.raises(UserError, match=f"--gen_kwargs {flags[1]}: must be"):
            check_model(read("--tasks", "t", "--model_args", adapter, *flags))
    with pytest.raises(UserError, match="give pretrained=FOLDER"):
        check_model(model_args("dtype=auto"))
    with pytest.raises(UserError, match="a plain base, which has no window"):
        check_model(model_args(f"pretrained={folder / 'base'},window_size=9"))
    with pytest.raises(UserError, match=r"^--num_retained_tokens 8: .* has no fitted scorer .*--window\.retained 8"):
        check_model(model_args(f"{adapter},num_retained_tokens=8"))
    chatting = read("--tasks", "t", "--apply_chat_template", "--model_args", adapter)
    with pytest.raises(UserError, match=r"--apply_chat_template: the tokenizer .* has no chat template"):
        check_model(chatting)


def test_kept_answers_are_one_models(folder, tmp_path):
    shutil.copytree(folder / "adapter", tmp_path / "adapter")
    files, found = set(), []
    for text in ("", ",window_size=24", ",num_sink_tokens=2"):
        config = read(
            "--tasks",
            "t",
            "--use_cache",
            tmp_path / "answers",
            "--model_args",
            f"pretrained={tmp_path / 'adapter'}{text}",
        )
        found.append(answers_file(config, check_model(config)))
    files.update(found)
    weights = tmp_path / "adapter/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    files.add(answers_file(config, check_model(config)))
    assert len(files) == 4 and all(Path(name).name.startswith("answers-") for name in files)
    assert answers_file(read("--tasks", "t"), check_model(config)) is None


@pytest.mark.slow
def test_ls_knows_what_is_added():
    command = [sys.executable, "-m", "pipeline.evaluation.lm_eval_run", "ls", "groups"]
    listed = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment(), cwd=REPOSITORY)
    assert listed.returncode == 0, listed.stderr[-2000:]
    assert listed.stdout.splitlines()[-2:] == ["lveval", "paper_longbench"]
