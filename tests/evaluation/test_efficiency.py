"""What suite `efficiency` measures and accounts for, on a tiny model."""

import json
import multiprocessing
import resource
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pipeline.config import EfficiencyConfig, EvalConfig
from pipeline.evaluation.efficiency.sections import make_section
from pipeline.evaluation.efficiency.suite import EfficiencySuite
from pipeline.evaluation.efficiency.summary import summarise
from pipeline.evaluation.efficiency.timing import account_context
from pipeline.evaluation.reader import Reader
from pipeline.evaluation.suite import EvaluationInputs
from pipeline.metrics.accounting import compute_account
from pipeline.metrics.architecture import load_architecture
from pipeline.metrics.retained_cost import choice_flops
from pipeline.model.files import resolve_model
from pipeline.model.loading import load_model
from tests.tiny_models import TINY_WINDOW, make_adapter

VARIANTS = ("full", "window", "memory_off", "ahn")
RETAINING = replace(TINY_WINDOW, num_retained_tokens=6, decision_interval=3)
HAYSTACK = list(range(2, 25))


@pytest.fixture(scope="module")
def readers(folder):
    model = load_model(str(folder / "adapter"), dtype=torch.float32).eval()
    return {variant: Reader(model, variant, TINY_WINDOW, 48, 4.0) for variant in VARIANTS}


def make_suite(folder, efficiency) -> EfficiencySuite:
    config = EvalConfig(
        model=folder / "adapter",
        output=folder / "eval",
        prefill_chunk=48,
        variants=list(VARIANTS),
        efficiency=efficiency,
    )
    files = resolve_model(folder / "adapter", None)
    return EfficiencySuite(EvaluationInputs(config, files, TINY_WINDOW, VARIANTS, None, HAYSTACK, None))


def test_records_hold_what_caches_hold_and_what_accounting_says(folder, readers) -> None:
    suite = make_suite(folder, EfficiencyConfig(lengths=[64, 16], new_tokens=3))
    units = suite.units()
    assert [unit.key for unit in units] == [f"{v}/{n}" for v in ("full", "window", "ahn") for n in (16, 64)]
    assert all(unit.on_first_rank for unit in units)
    records = {unit.key: suite.measure(unit, {v: readers[v] for v in unit.variants}) for unit in units}
    assert records == json.loads(json.dumps(records, allow_nan=False))
    architecture = load_architecture(str(folder / "base"))
    for key, record in records.items():
        assert record["prefill_s"] > 0 and record["decode_s"] > 0 and record["peak_bytes"] is None
        reader, length = readers[record["variant"]], record["length"]
        cache = reader.new_cache()
        reader.read((HAYSTACK * 3)[:length], cache)
        held = [x for layer in cache.layers for x in layer.tensors().values()]
        assert record["cache_bytes"] == sum(x.nelement() * x.element_size() for x in held), key
        assert record["evicted"] == max(0, length - TINY_WINDOW.lossless_budget)
        accounted, name = record["accounted"], "full" if record["variant"] == "full" else "ahn"
        cell = "gated_delta_net" if record["variant"] == "ahn" else None
        now, then = (compute_account(architecture, cell, n, TINY_WINDOW) for n in (length, length + 1))
        assert accounted["prefill_flops"] == getattr(now.model_flops, name)
        assert accounted["decode_flops"] == getattr(then.model_flops, name) - getattr(now.model_flops, name)
        assert accounted["cache_bytes"] == getattr(now.cache_bytes, name)
        if name == "ahn":
            assert record["cache_bytes"] == accounted["kept_bytes"] == now.kept_bytes
    assert records["full/64"]["cache_bytes"] == records["full/64"]["accounted"]["cache_bytes"]
    summary = suite.summarise(records)
    (section,) = suite.sections(json.loads(json.dumps(summary)), records)
    assert len(section.tables[1].rows) == 6 and section.pictures[0].png.startswith(b"\x89PNG")


def test_what_variants_that_retain_tokens_compute_and_keep_is_accounted_for(folder, tmp_path) -> None:
    model = load_model(str(make_adapter(tmp_path / "adapter", folder / "base", RETAINING)), dtype=torch.float32).eval()
    found = {}
    for variant in ("window", "wider6", "retained6", "retained6_ahn", "ahn", "random6"):
        reader = Reader(model, variant, TINY_WINDOW, 48, 4.0, RETAINING.decision_interval)
        found[variant] = account_context(reader, 64, TINY_WINDOW)
        cache = reader.new_cache()
        reader.read((HAYSTACK * 3)[:64], cache)
        if found[variant] is not None:
            assert found[variant].kept_bytes == cache.num_bytes(), variant
    assert found["random6"] is None
    for name in ("prefill_flops", "decode_flops", "kept_bytes"):
        of = {variant: getattr(accounted, name) for variant, accounted in found.items() if accounted is not None}
        assert of["window"] < of["wider6"] < of["retained6"] < of["retained6_ahn"] and of["window"] < of["ahn"], name
    wide, chosen = found["wider6"], found["retained6"]
    assert wide.cache_bytes == chosen.cache_bytes
    assert chosen.prefill_flops - wide.prefill_flops == 2 * choice_flops(
        load_architecture(str(folder / "base")), 64, RETAINING
    )


def test_growth_is_per_doubling() -> None:
    def record(length, seconds):
        measured = {"prefill_s": seconds, "decode_s": 2.0, "cache_bytes": length}
        return {"variant": "full", "length": length, "device": "cpu", **measured}

    growth = summarise([record(800, 90.0), record(100, 1.0), record(200, 3.0)])["growth"]["full"]
    assert [(step["from"], step["to"]) for step in growth] == [(100, 200), (200, 800)]
    assert [step["prefill_s"] for step in growth] == pytest.approx([3, 30**0.5])
    assert all(step["decode_s"] == 1 and step["cache_bytes"] == pytest.approx(2) for step in growth)


def test_growth_is_told_with_the_lengths_that_each_row_has() -> None:
    def record(variant, length):
        measured = {"prefill_s": 1.0, "decode_s": 2.0, "cache_bytes": length, "peak_bytes": None, "accounted": None}
        return {"variant": variant, "length": length, "device": "cpu", "threads": 1, **measured}

    records = [record("full", n) for n in (16, 32)] + [record("ahn", n) for n in (1024, 2048, 8192)]
    section = make_section(summarise(records), TINY_WINDOW, new_tokens=3, prefill_chunk=48)
    growth = section.tables[0]
    assert growth.header[1] == "tokens"
    assert [row[:2] for row in growth.rows] == [["full", "16 to 32"], ["sinks + window + AHN", "2,048 to 8,192"]]
    assert not any(character.isdigit() for character in growth.caption)
    assert "up to W = 16 tokens" in section.note


def test_lengths_are_multiples_of_the_budget_if_none_are_given(folder) -> None:
    suite = make_suite(folder, EfficiencyConfig())
    assert [unit.key for unit in suite.units()][:5] == [f"full/{n * 16}" for n in (1, 2, 4, 8, 16)]


def test_times_of_two_devices_in_one_folder_are_told_apart(folder, readers) -> None:
    suite = make_suite(folder, EfficiencyConfig(lengths=[16, 32, 64], new_tokens=1))
    records = {unit.key: suite.measure(unit, readers) for unit in suite.units() if unit.variants == ("window",)}
    (one,) = suite.sections(suite.summarise(records), records)
    assert "Do not compare" not in one.note and len(suite.summarise(records)["growth"]["window"]) == 2
    records["window/64"]["device"] = "another machine"
    summary = suite.summarise(records)
    assert [(step["from"], step["to"]) for step in summary["growth"]["window"]] == [(16, 32)]
    (section,) = suite.sections(summary, records)
    assert f"{' and '.join(sorted({r['device'] for r in records.values()}))}, with" in section.note
    assert "Do not compare times of different devices" in section.note


def measure_with_little_memory(folder) -> None:
    """Of two lengths one needs more memory than this process may have; says nothing where all is as it should be."""
    suite = make_suite(folder, EfficiencyConfig(lengths=[64, 1 << 18], new_tokens=1))
    model = load_model(str(folder / "adapter"), dtype=torch.float32).eval()
    readers = {v: Reader(model, v, TINY_WINDOW, 1 << 18, 4.0) for v in VARIANTS}
    units = [unit for unit in suite.units() if unit.variants == ("full",)]
    suite.measure(units[0], readers)
    in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (in_use + (64 << 20), resource.RLIM_INFINITY))
    records = {unit.key: suite.measure(unit, readers) for unit in units}
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    small, large = records["full/64"], records[f"full/{1 << 18}"]
    assert small["prefill_s"] > 0
    assert (large["prefill_s"], large["decode_s"], large["cache_bytes"]) == (None, None, None)
    assert large["accounted"]["prefill_flops"] > small["accounted"]["prefill_flops"]
    for of in (records, {units[1].key: large}):  # some were measured; none
        summary = suite.summarise(of)
        assert not any(summary["growth"].values())
        (section,) = suite.sections(json.loads(json.dumps(summary)), of)
        assert section.tables[-1].rows[-1][1:5] == ["262,144", "out of memory", "", ""]
        assert len(section.pictures) == (of is records)


@pytest.mark.slow
def test_a_context_for_which_memory_does_not_suffice_is_a_row_of_the_table(folder) -> None:
    process = multiprocessing.get_context("spawn").Process(target=measure_with_little_memory, args=(folder,))
    process.start()
    process.join(timeout=120)
    process.kill()
    assert process.exitcode == 0
