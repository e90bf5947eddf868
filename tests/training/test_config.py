import pytest

from pipeline.config import ConfigError, TrainConfig, TrainRunConfig, parse_cli, to_plain
from pipeline.training.run_folder import FREE_SETTINGS, fixed_settings

REQUIRED = ["--model=m", "--data=d", "--output=o", "--ds_config=z.json"]


def parse(*flags: str) -> TrainRunConfig:
    return parse_cli(TrainRunConfig, [*REQUIRED, *flags])


def test_flags_win_over_the_recipe_and_the_recipe_over_defaults(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("train: {max_steps: 5, seed: 3}\nwindow: {budgets: [8, 16], sinks: [0, 4]}\n")
    config = parse(f"--config={recipe}", "--train.max_steps=20")
    assert (config.train.max_steps, config.train.seed, config.train.loss) == (20, 3, "kl")
    assert config.window.budgets == [8, 16]
    assert to_plain(config)["train"]["max_steps"] == 20


@pytest.mark.parametrize(
    ("flag", "expected"),
    [
        ("--train.max_steps=0", "--train.max_steps: must be >= 1, found 0"),
        ("--train.learning_rate=0", "--train.learning_rate: must be > 0"),
        ("--train.warmup_ratio=1", r"--train.warmup_ratio: must be in \[0, 1\), found 1"),
        ("--train.loss=mse", "train.loss"),
        ("--train.mixture={books: 0.7, code: 0}", "--train.mixture: code must be finite and > 0, found 0.0"),
        ("--train.mixture={books: .inf}", "--train.mixture: books must be finite and > 0, found inf"),
        ("--train.mixture={}", "--train.mixture: names no source"),
        ("--train.mixture={books: much}", "train.mixture"),
        ("--train.shuffle=some", "train.shuffle"),
        ("--train.shuffle_block_shards=0", "--train.shuffle_block_shards: must be >= 1"),
        ("--train.loader_workers=0", "--train.loader_workers: must be >= 1"),
        ("--data_cache_bytes=0", "--data_cache_bytes: must be >= 1"),
        ("--train.max_step=3", "max_step"),
        ("--window.budgets=[1]", r"--window.budgets: needs at least one value, each >= 2, found \[1\]"),
        ("--window.sinks=[]", "--window.sinks: needs at least one value"),
        ("--window.inference_window=0", "--window.inference_window: must be >= 1"),
    ],
)
def test_a_wrong_setting_is_refused_by_name(flag, expected):
    with pytest.raises(ConfigError, match=expected) as error:
        parse(flag)
    assert "\n" not in str(error.value)


def test_sinks_that_fit_no_budget_are_refused():
    with pytest.raises(ConfigError, match=r"at most half of the smallest --window.budgets"):
        parse("--window.budgets=[16]", "--window.sinks=[9]")


def test_accumulation_follows_from_batch_and_ranks():
    train = TrainConfig(global_batch_size=24, micro_batch_size=2)
    assert [train.grad_accum_steps(n) for n in (1, 2, 3, 4, 6, 12)] == [12, 6, 4, 3, 2, 1]
    with pytest.raises(ConfigError, match=r"24 is not a multiple of --train.micro_batch_size 2 x 5"):
        train.grad_accum_steps(5)


def test_settings_that_a_resume_may_change_exist():
    config = parse()
    names = {f"{part}.{name}" for part in ("memory", "window", "train") for name in to_plain(config)[part]}
    assert names >= FREE_SETTINGS and fixed_settings(config).keys() == names - FREE_SETTINGS
