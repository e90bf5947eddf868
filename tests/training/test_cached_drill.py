"""Twenty steps from each cache against twenty with the teacher: SmolLM2-135M on real text and on instruction data,
and a tiny Qwen2 with Qwen2.5's vocabulary."""

import json
import subprocess
import sys
from pathlib import Path
from pydoc_data.topics import topics

import pytest

from pipeline.config import TeacherCacheConfig, TrainRunConfig, parse_cli
from pipeline.data.dataset import PackedDataset
from pipeline.distributed.groups import init_distributed
from pipeline.metrics.logger import read_metrics
from pipeline.teacher.capture import run_capture
from pipeline.teacher.capture_plan import plan_capture
from pipeline.training.preflight import preflight
from pipeline.training.stop_flag import StopFlag
from pipeline.training.trainer import Trainer
from tests.distributed.processes import REPOSITORY
from tests.drill import record
from tests.teacher.capture_inputs import make_data, make_teacher

pytestmark = [pytest.mark.drill, pytest.mark.timeout(3600)]
NUM_STEPS, SEQ_LEN, BUDGET = 20, 512, 128
FACTS = "largest_relative_difference_of_a_loss"
FLAGS = {
    "hidden float32": ["--signal=hidden", "--dtype=float32"],
    "hidden bfloat16": ["--signal=hidden", "--dtype=bfloat16"],
    "hidden int8": ["--signal=hidden", "--dtype=int8"],
    "topk": ["--signal=topk"],
    "sampled": ["--signal=sampled"],
}


@pytest.fixture(scope="module")
def ranks():
    return init_distributed()


def prepare(model: Path, output: Path, inputs: Path, *flags: str) -> Path:
    arguments = [f"--tokenizer={model}", f"--seq_len={SEQ_LEN}", f"--output={output}", f"--inputs={inputs}", *flags]
    command = [sys.executable, str(REPOSITORY / "launchers" / "prepare.py"), *arguments]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    return output


def capture(model: Path, data: Path, output: Path, dtype: str, *flags: str) -> tuple[int, int]:
    """Positions and bytes of the cache."""
    named = [f"--model={model}", f"--data={data}", f"--output={output}", f"--base_dtype={dtype}"]
    outcome = run_capture(plan_capture(parse_cli(TeacherCacheConfig, [*named, *flags])), 0, 1, 0)
    assert outcome.num_left == 0
    return outcome.num_positions, outcome.num_bytes


def train(ranks, model: Path, data: Path, output: Path, dtype: str, budget: int, cache: Path | None) -> list[float]:
    """The losses of all steps that have something to supervise."""
    given = {
        "model": model,
        "data": data,
        "output": output,
        "ds_config": REPOSITORY / "ds_configs" / "zero2.json",
        "window.budgets": [budget],
        "window.sinks": [budget // 4],
        "train.max_steps": NUM_STEPS,
        "train.global_batch_size": 1,
        "train.learning_rate": 0.003,
        "train.base_dtype": dtype,
        "train.activation_checkpointing": "false",
    }
    arguments = [f"--{name}={value}" for name, value in given.items()]
    arguments += [] if cache is None else [f"--teacher_cache={cache}"]
    Trainer(preflight(parse_cli(TrainRunConfig, arguments)), StopFlag(), ranks).run()
    return [row["loss/kl"] for row in read_metrics(output / "metrics.jsonl") if "loss/kl" in row]


def largest_difference(losses: list[float], due: list[float]) -> float:
    assert NUM_STEPS // 2 < len(losses) == len(due)
    return max(abs(a / b - 1) for a, b in zip(losses, due, strict=True))


def compare(ranks, model: Path, data: Path, root: Path, budget: int, names: list[str]) -> dict[str, float]:
    """By signal, the largest relative difference of a step's loss, with base and teacher in float32."""
    due = train(ranks, model, data, root / "online", "float32", budget, None)
    found = {}
    for name in names:
        cache = root / f"cache {name}"
        capture(model, data, cache, "float32", f"--min_budget={budget}", *FLAGS[name])
        losses = train(ranks, model, data, root / name, "float32", budget, cache)
        found[name] = largest_difference(losses, due)
    return found


def test_a_vocabulary_as_large_as_qwens(ranks, tmp_path):
    model = make_teacher(tmp_path / "qwen", 151_936, hidden_size=32)
    differences = compare(ranks, model, make_data(tmp_path / "data", model), tmp_path, 12, list(FLAGS))
    assert differences["hidden float32"] <= 1e-5 and differences["hidden bfloat16"] <= 5e-3
    record("cached_training_large_vocabulary", {"model": "tiny Qwen2, 151,936 tokens", FACTS: differences})


def test_a_real_model(ranks, smollm2, tmp_path):
    texts = [topics[name] for name in sorted(topics) if len(topics[name]) > 12 * SEQ_LEN][: NUM_STEPS + 4]
    (tmp_path / "text").mkdir()
    for number, text in enumerate(texts):
        (tmp_path / "text" / f"{number}.txt").write_text(text[: 12 * SEQ_LEN])
    data = prepare(smollm2, tmp_path / "data", tmp_path / "text")
    differences = compare(ranks, smollm2, data, tmp_path / "s", BUDGET, list(FLAGS))
    assert differences["hidden float32"] <= 1e-5 and differences["hidden bfloat16"] <= 5e-3
    due = train(ranks, smollm2, data, tmp_path / "bf16", "bfloat16", BUDGET, None)
    capture(smollm2, data, tmp_path / "cache", "bfloat16", f"--min_budget={BUDGET}", *FLAGS["hidden bfloat16"])
    losses = train(ranks, smollm2, data, tmp_path / "from", "bfloat16", BUDGET, tmp_path / "cache")
    differences["hidden bfloat16, base and teacher in bfloat16"] = largest_difference(losses, due)
    record("cached_training", {"model": "SmolLM2-135M", "steps": NUM_STEPS, FACTS: differences})


def test_answers_only(ranks, smollm2, tmp_path):
    record("cached_training_answers_only", answers_only(ranks, smollm2, tmp_path / "answers"))


def answers_only(ranks, model: Path, root: Path) -> dict:
    """Instruction data: a long question and a short answer."""
    root.mkdir()
    with open(root / "chats.jsonl", "w") as file:
        for name in [name for name in sorted(topics) if len(topics[name]) > 2200][:40]:
            question, answer = topics[name][:1400], topics[name][1400:1650]
            turns = [("user", f"Go on:\n{question}"), ("assistant", answer)]
            messages = [{"role": role, "content": content} for role, content in turns]
            file.write(json.dumps({"messages": messages}) + "\n")
    flags = ("--messages_field=messages", "--packing=none")
    data = prepare(model, root / "data", root / "chats.jsonl", *flags)
    signal = FLAGS["hidden float32"]
    positions, size = capture(model, data, root / "cache", "float32", f"--min_budget={BUDGET}", *signal)
    due = train(ranks, model, data, root / "online", "float32", BUDGET, None)
    losses = train(ranks, model, data, root / "cached", "float32", BUDGET, root / "cache")
    assert largest_difference(losses, due) <= 1e-5
    dataset = PackedDataset(data)
    return {
        "tokens": dataset.num_tokens,
        "positions": positions,
        "bytes": size,
        "bytes_if_every_position_were_kept": round(size * dataset.num_tokens / positions),
        "hidden float32": largest_difference(losses, due),
    }
