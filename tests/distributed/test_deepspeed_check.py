"""What DeepSpeed would train without is refused, by what the installed DeepSpeed itself looks for."""

import json
import sys

import pytest

from pipeline.distributed.deepspeed_check import check_deepspeed_config
from pipeline.errors import UserError
from tests.distributed.processes import REPOSITORY, TRAIN, run
from tests.training.launched_runs import arguments, assert_one_line, make_inputs

SIZES = {"train_batch_size": 8, "train_micro_batch_size_per_gpu": 2, "gradient_accumulation_steps": 2}


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"zero_optimisation": {"stage": 2}}, 'no "zero_optimisation"; did you mean zero_optimization?'),
        ({"gradient_cliping": 1.0}, 'no "gradient_cliping"; did you mean gradient_clipping?'),
        ({"stage": 2}, 'no "stage" (it would train without it)'),
        ({"zero_optimization": {"stag": 2}}, "stag: Extra inputs are not permitted, found 2"),
        ({"zero_optimization": {"stage": 7}}, "stage: Input should be 0, 1, 2"),
        ({"zero_optimization": {"offload_optimizer": {"devic": "cpu"}}}, "offload_optimizer.devic: Extra inputs"),
        ({"comms_logger": {"enable": True}}, "enable: Extra inputs are not permitted"),
        ({"flops_profiler": {"enable": True}}, '"flops_profiler" has "enable"; did you mean "enabled"?'),
        ({"activation_checkpointing": {"partition_activation": True}}, 'did you mean "partition_activations"?'),
        ({"communication_data_type": "fp99"}, "Invalid communication_data_type"),
        ({"activation_checkpointing": True}, "a section that must be an object {...} is not"),
        ({"elasticity": {"enabled": True}}, "Elastic training has been removed"),
    ],
)
def test_what_deepspeed_does_not_know_or_take_is_one_line(tmp_path, settings, expected):
    path = tmp_path / "ds.json"
    with pytest.raises(UserError) as error:
        check_deepspeed_config(path, SIZES | settings)
    message = str(error.value)
    assert message.startswith(f"--ds_config {path}: ") and expected in message and "\n" not in message


def test_what_deepspeed_knows_passes_however_deep(tmp_path):
    for path in sorted((REPOSITORY / "ds_configs").glob("*.json")):
        check_deepspeed_config(path, SIZES | json.loads(path.read_text()))
    known = {
        "zero_optimization": {"stage": 3, "overlap_comm": True, "reduce_bucket_size": 5e8, "sub_group_size": 1e9},
        "flops_profiler": {"enabled": False, "profile_step": 1, "module_depth": -1, "top_modules": 1, "detailed": True},
        "comms_logger": {"enabled": True, "verbose": False, "prof_all": True, "debug": False, "prof_ops": []},
        "activation_checkpointing": {"partition_activations": False, "cpu_checkpointing": False, "profile": False},
        "aio": {"block_size": 1048576, "queue_depth": 8, "single_submit": False, "overlap_events": True},
        "checkpoint": {"tag_validation": "Warn", "load_universal": False, "use_node_local_storage": False},
        "data_types": {"grad_accum_dtype": "fp32"},
        "tensorboard": {"enabled": False, "output_path": "x", "job_name": "y"},
        "bf16": {"enabled": False},
        "fp16": {"enabled": False, "loss_scale": 0},
        "wall_clock_breakdown": True,
        "prescale_gradients": False,
    }
    check_deepspeed_config(tmp_path / "ds.json", SIZES | {"gradient_clipping": 1.0, "steps_per_print": None} | known)


@pytest.mark.slow
def test_a_training_is_refused_before_and_while_the_engine_is_built(tmp_path):
    inputs = make_inputs(tmp_path)
    for settings, expected in (
        ({"zero_optimisation": {"stage": 2}}, "did you mean zero_optimization?"),
        ({"zero_optimization": {"stage": 3, "offload_param": {"device": "nvme"}}}, '"nvme_path" in DeepSpeed Config'),
    ):
        (tmp_path / "ds.json").write_text(json.dumps(settings))
        flags = [*arguments(inputs, tmp_path / "run"), "--ds_config", tmp_path / "ds.json"]
        done = run([sys.executable, TRAIN, *flags], tmp_path / "log")
        assert_one_line(done, "--ds_config", expected)
