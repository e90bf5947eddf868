"""What holds an evaluation of several processes together, on made-up work and on tiny models."""

import json
import resource
import shutil
from dataclasses import replace

import pytest
import torch

from pipeline.attention.window import WindowSpec
from pipeline.config import AbsorbedConfig, EfficiencyConfig, EvalConfig, NeedlesConfig
from pipeline.distributed.launch import LaunchedRank
from pipeline.errors import UserError
from pipeline.evaluation.absorbed.suite import AbsorbedSuite
from pipeline.evaluation.catalogue import make_inputs
from pipeline.evaluation.claims import claimed
from pipeline.evaluation.efficiency.suite import EfficiencySuite
from pipeline.evaluation.facts import weights_fingerprint
from pipeline.evaluation.failures import find_failures, noted_failure
from pipeline.evaluation.needles.suite import NeedlesSuite
from pipeline.evaluation.records import EvaluationFolder
from pipeline.evaluation.runner import evaluate
from pipeline.evaluation.suite import EvaluationInputs, Unit
from pipeline.evaluation.unmeasured import CAUSAL, NEEDS_ONE_OF, why_unmeasured
from pipeline.evaluation.waiting import wait_for_all
from pipeline.folder_claim import OWNER_NAME
from pipeline.model.export import export_published
from pipeline.model.files import resolve_model
from tests.conftest import TINY_VOCAB_SIZE
from tests.tiny_models import make_adapter, make_base


class Letters:
    """A suite of which only the name is needed."""

    name = "letters"


WORK = [(Letters, Unit(key, ("full",))) for key in "ab"]


def folder_of(path, rank) -> EvaluationFolder:
    return EvaluationFolder(path, rank, {}, {"letters": {}})


class Greedy:
    """A suite whose second unit takes a pebibyte."""

    name, settings = "greedy", {}

    def units(self) -> list[Unit]:
        return [Unit(key, ("window",)) for key in ("small", "large")]

    def measure(self, unit, readers) -> dict:
        return {"size": torch.empty(1 if unit.key == "small" else 1 << 48).nelement()}


@pytest.fixture(scope="module")
def base(tmp_path_factory, tiny_tokenizer):
    return make_base(tmp_path_factory.mktemp("model") / "base", tiny_tokenizer, TINY_VOCAB_SIZE)


@pytest.mark.timeout(20)
def test_rank_0_does_not_wait_for_a_rank_that_failed(tmp_path) -> None:
    with pytest.raises(ValueError, match="no such"), noted_failure(tmp_path, rank=1):
        raise ValueError("no such\ndevice")
    with pytest.raises(ValueError, match="5"), noted_failure(tmp_path, rank=5):
        raise ValueError("an earlier start had rank 5")
    first, second = folder_of(tmp_path, rank=0), folder_of(tmp_path, rank=1)
    first.write("letters", "a", {}, 0.25, 1.0)
    with pytest.raises(UserError, match=r"rank 1 failed \(no such device\)"):
        wait_for_all(WORK, first, 2, patience=0.3)
    with noted_failure(tmp_path, rank=1):
        assert find_failures(tmp_path, 2) == {}, "a new start is taken for the failed one"
        second.write("letters", "b", {}, 0.25, 1.0)
    wait_for_all(WORK, first, 2, patience=0.3)


@pytest.mark.timeout(20)
def test_rank_0_ends_when_another_evaluation_has_taken_the_folder_over(tmp_path) -> None:
    with claimed(tmp_path, 0) as claim:
        first = EvaluationFolder(tmp_path, 0, {}, {"letters": {}}, claim)
        first.write("letters", "a", {}, 0.25, 1.0)
        (tmp_path / OWNER_NAME).write_text('{"token": "another", "pid": 4711, "host": "node7", "since": "noon"}')
        with pytest.raises(UserError, match=r"taken over by another run \(process 4711 on node7"):
            first.write("letters", "b", {}, 0.25, 1.0)
        with pytest.raises(UserError, match="taken over by another run"):
            wait_for_all(WORK, first, 2)
    assert folder_of(tmp_path, rank=0).records.keys() == {("letters", "a")}
    assert "another" in (tmp_path / OWNER_NAME).read_text()


@pytest.mark.timeout(20)
def test_rank_0_waits_for_its_own_work_only(tmp_path) -> None:
    first, other = folder_of(tmp_path, rank=0), folder_of(tmp_path, rank=1)
    first.write("letters", "a", {}, 0.25, 1.0)
    other.write("digits", "1", {}, 0.25, 1.0)  # of a suite that was measured earlier
    with pytest.raises(ValueError), noted_failure(tmp_path, rank=1):
        raise ValueError("gone")
    with pytest.raises(UserError, match="gone"):  # and does not take the digit for the letter
        wait_for_all(WORK, first, 2, patience=0.3)


@pytest.mark.timeout(20)
def test_a_failure_whose_reason_found_no_room_is_a_failure(tmp_path) -> None:
    first = folder_of(tmp_path, rank=0)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        with pytest.raises(ValueError, match="gone"), noted_failure(tmp_path, rank=1):
            raise ValueError("gone")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    with pytest.raises(UserError, match="rank 1 failed; its reason could not be written; what is measured is kept"):
        wait_for_all(WORK, first, 2, patience=0.3)


SUITES = {"needles": NeedlesSuite, "efficiency": EfficiencySuite, "absorbed": AbsorbedSuite}


def test_suites_say_truly_which_variants_they_need(base, tmp_path) -> None:
    (tmp_path / "haystack.txt").write_text("One word after another. " * 200)
    config = EvalConfig(
        model=make_adapter(tmp_path / "adapter", base, WindowSpec(4, 12, 3)),
        output=tmp_path / "out",
        suites=list(SUITES),
        variants=list(CAUSAL),
        haystack=tmp_path / "haystack.txt",
        needles=NeedlesConfig(lengths=[300]),
        efficiency=EfficiencyConfig(lengths=[16]),
        absorbed=AbsorbedConfig(windows=[1]),
    )
    files = resolve_model(config.model, None)
    inputs = make_inputs(config, files, files.window, None)
    for name, suite in SUITES.items():
        alone = {variant: suite(replace(inputs, variants=(variant,))).units() for variant in inputs.variants}
        needed = NEEDS_ONE_OF.get(name, CAUSAL)
        assert {variant for variant, units in alone.items() if units} == set(needed), name
    assert "needs --variants ahn, and --model" in why_unmeasured("probing", inputs)


def test_memory_that_does_not_suffice_is_a_line_that_says_what_takes_less(base, tmp_path) -> None:
    config = EvalConfig(model=base, output=tmp_path / "out", num_sink_tokens=4, window_size=12, variants=["window"])
    inputs = EvaluationInputs(config, resolve_model(base, None), WindowSpec(4, 12), ("window",), None, [], None)
    with pytest.raises(UserError, match=r"out of memory .*--prefill_chunk than 2,048") as caught:
        evaluate(inputs, [Greedy()], LaunchedRank(0, 1, 0))
    assert str(caught.value).startswith("--suites greedy: large: ") and "\n" not in str(caught.value)
    (line,) = (tmp_path / "out/records/rank-0.jsonl").read_text().splitlines()
    assert json.loads(line)["record"] == {"size": 1}
    with claimed(tmp_path / "out", 0), pytest.raises(UserError, match="another run is writing there"):
        evaluate(inputs, [Greedy()], LaunchedRank(0, 1, 0))


def test_a_published_checkpoint_on_another_base_has_other_weights(base, tmp_path) -> None:
    export_published(make_adapter(tmp_path / "adapter", base), tmp_path / "published")
    shutil.copytree(base, tmp_path / "base")
    weights = tmp_path / "base/model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    found = [weights_fingerprint(resolve_model(tmp_path / "published", str(b))) for b in (base, tmp_path / "base")]
    assert found[0] != found[1]


def test_a_base_without_its_tokenizer_is_named_in_a_line(base, tmp_path) -> None:
    shutil.copytree(base, tmp_path / "base")
    (tmp_path / "base/tokenizer.json").unlink()
    config = EvalConfig(model=tmp_path / "base", output=tmp_path / "out", suites=["needles"])
    with pytest.raises(UserError, match="base has no tokenizer that can be read") as caught:
        make_inputs(config, resolve_model(tmp_path / "base", None), WindowSpec(4, 12), None)
    assert "\n" not in str(caught.value)
