"""lm-eval's command line in several processes: each takes its share of the examples, and the first reports on all."""

import json
from pathlib import Path

import lm_eval.tasks
import pytest

from tests.distributed.processes import REPOSITORY, run_ranks

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]
RUN = REPOSITORY / "pipeline/evaluation/lm_eval_run.py"
BOOK = "def test(tmp_path): the session is a folder with tokens, and its scope is json. "
TASKS = {"longbench_hotpotqa": "longbench/hotpotqa.yaml", "longbench2_detective": "longbench2/detective.yaml"}


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    """LongBench's hotpotqa and LongBench-v2's detective, of five rows each: an odd number."""
    folder = tmp_path_factory.mktemp("tasks")
    for name, file in TASKS.items():
        rows = [
            {"context": BOOK * (i + 1), "question": f"Who is {i}?", "answers": ["json"], "all_classes": []}
            | {"choices": ["json", "a folder", "scope", "tmp"], "answer": i % 4}
            for i in range(5)
        ]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        split = "train" if name.startswith("longbench2") else "test"
        files = {"data_files": {split: str(folder / f"{name}.jsonl")}, "cache_dir": str(folder / "cache")}
        data = {"dataset_path": "json", "dataset_name": None, "dataset_kwargs": files}
        included = {"include": str(Path(lm_eval.tasks.__file__).parent / file)}
        (folder / f"{name}.yaml").write_text(json.dumps(included | data | {"task": name}))  # JSON is YAML
    return folder


def run(tasks, model, output, num_ranks, *flags):
    output.mkdir()
    model_args = f"pretrained={model},prefill_chunk=64,max_length=400"
    command = ["--model", "ahn", "--tasks", ",".join(TASKS), "--include_path", tasks, "--model_args", model_args]
    command += ["--gen_kwargs", "max_gen_toks=8", "--log_samples", "--output_path", output / "results"]
    return run_ranks(RUN, [*command, *flags], output, num_ranks=num_ranks, timeout=200)


def read(finished, output):
    assert all(f.returncode == 0 for f in finished), finished[-1].output[-3000:]
    (report,) = (output / "results").rglob("results_*.json")
    samples = {}
    for name in TASKS:
        (file,) = (output / "results").rglob(f"samples_{name}_*.jsonl")
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        samples[name] = sorted(rows, key=lambda row: row["doc_id"])
    return json.loads(report.read_text()), samples


def test_two_processes_find_what_one_does(tasks, folder, tmp_path):
    found = []
    for num_ranks in (1, 2):
        output = tmp_path / str(num_ranks)
        found.append(read(run(tasks, folder / "adapter", output, num_ranks), output))
    (one, samples), (two, shared_samples) = found
    assert one["results"].keys() == two["results"].keys() == TASKS.keys()
    for name in TASKS:
        assert [row["doc_id"] for row in samples[name]] == list(range(5))
        assert [row["resps"] for row in shared_samples[name]] == [row["resps"] for row in samples[name]]
        for metric in ("score,none", "acc,none"):
            expected = one["results"][name].get(metric)
            assert two["results"][name].get(metric) == (None if expected is None else pytest.approx(expected))
    counts = {"longbench_hotpotqa": 5, "longbench2_detective": 20}
    assert one["config"]["num_requests"] == two["config"]["num_requests"] == counts
    assert one["config"]["evicted"] == two["config"]["evicted"] and one["config"]["evicted"].keys() == TASKS.keys()
    assert one["config"]["evicted"]["longbench_hotpotqa"]["share"] == 1
    cut = one["config"]["num_truncated"]
    assert cut == two["config"]["num_truncated"] and 0 < cut["longbench_hotpotqa"] < 5
    assert (one["config"]["num_processes"], two["config"]["num_processes"]) == (1, 2)


def test_more_processes_than_examples_is_one_line(tasks, folder, tmp_path):
    (tmp_path / "settings.yaml").write_text("limit: 0.2\n")
    flags = ("--config", tmp_path / "settings.yaml")
    for rank, finished in enumerate(run(tasks, folder / "adapter", tmp_path / "out", 2, *flags)):
        assert finished.returncode == 2
        (line,) = (line for line in finished.output.splitlines() if line.startswith("error"))
        expected = "--tasks longbench_hotpotqa: 1 examples for 2 processes; start fewer"
        assert line == f"error (rank {rank}): {expected}"
