"""Who may import whom, read off the syntax trees: one direction, no circles, no heavy import where none may be."""

import ast
import graphlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("pipeline", "data_prep", "launchers")
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for package in PACKAGES
    for path in sorted((ROOT / package).rglob("*.py"))
}
LIGHT = {  # module -> the only foreign packages it may import
    "pipeline.errors": set(),
    "pipeline.flags": set(),
    "pipeline.byte_counts": set(),
    "pipeline.remembered": set(),
    "pipeline.whole_output": set(),
    "pipeline.stop_signals": set(),
    "pipeline.folder_claim": set(),
    "pipeline.provenance": set(),
    **{m: {"jsonargparse", "yaml"} for m in MODULES if m.startswith("pipeline.config")},
    "pipeline.exit_codes": set(),
    "pipeline.data.sealed_json": set(),
    "pipeline.data.manifest_fields": set(),
    **{f"pipeline.data.{m}": {"numpy"} for m in ("shard_format", "shard_io", "tar_members")},
    **{f"pipeline.teacher.{m}": {"numpy"} for m in ("signals", "bit_packing")},
    **{f"pipeline.teacher.cache_{m}": {"numpy"} for m in ("format", "listing", "claims", "writer")},
    **{f"pipeline.teacher.cache_{m}": {"numpy", "zstandard"} for m in ("members", "samples")},
    "pipeline.teacher.cache_later_masses": {"numpy", "safetensors"},
    "pipeline.attention.window": {"numpy"},
    "pipeline.attention.retained_blocks": set(),
}

TEACHER_CACHE = {  # the cache folder: no torch, no model
    *(m for m in MODULES if m == "pipeline.teacher.cache" or m.startswith("pipeline.teacher.cache_")),
    *("pipeline.teacher.verify", "pipeline.teacher.inspect"),
}
ALLOWED = {  # layer -> layers of ours it may import
    "pipeline.stop_signals": set(),
    "pipeline.provenance": set(),
    "pipeline.errors": {"pipeline.stop_signals"},
    "pipeline.flags": {"pipeline.errors"},
    "pipeline.byte_counts": set(),
    "pipeline.remembered": set(),
    "pipeline.whole_output": {"pipeline.errors"},
    "pipeline.folder_claim": {"pipeline.errors"},
    "pipeline.config": {"pipeline.errors", "pipeline.flags", "pipeline.byte_counts"},
    "pipeline.ahn": {"pipeline.errors"},
    "pipeline.distributed": {"pipeline.errors", "pipeline.flags"},
    "pipeline.attention": {"pipeline.errors"},
    "pipeline.losses": {"pipeline.errors", "pipeline.teacher.signals", "pipeline.attention.window"},
    "pipeline.data": {
        *("pipeline.errors", "pipeline.attention.window", "pipeline.losses.positions", "pipeline.teacher.signals"),
        "pipeline.byte_counts",
    },
    "pipeline.tokenizer": {
        *("pipeline.errors", "pipeline.data.shard_format", "pipeline.model.files", "pipeline.remembered")
    },
    "pipeline.model": {
        *("pipeline.errors", "pipeline.config", "pipeline.ahn", "pipeline.attention", "pipeline.distributed"),
        *("pipeline.losses.output_head", "pipeline.whole_output", "pipeline.tokenizer", "pipeline.byte_counts"),
        "pipeline.remembered",
    },
    "pipeline.metrics": {"pipeline.errors", "pipeline.config", "pipeline.attention.window"},
    "pipeline.exit_codes": {"pipeline.errors"},
    "pipeline.teacher.bit_packing": set(),
    "pipeline.teacher.signals": {"pipeline.errors", "pipeline.teacher.bit_packing"},
    **dict.fromkeys(
        TEACHER_CACHE,
        TEACHER_CACHE
        | {"pipeline.errors", "pipeline.exit_codes", "pipeline.flags", "pipeline.folder_claim", "pipeline.data"}
        | {"pipeline.losses.positions", "pipeline.teacher.signals", "pipeline.tokenizer"},
    ),
    "pipeline.launching": {
        *("pipeline.errors", "pipeline.flags", "pipeline.config", "pipeline.data", "pipeline.attention.window"),
        *("pipeline.attention.retained_blocks", "pipeline.byte_counts"),
        *("pipeline.model.base_config", "pipeline.model.files"),
        *("pipeline.metrics.accounting", "pipeline.metrics.architecture"),
        *("pipeline.teacher", "pipeline.evaluation.training_curve"),
        *("pipeline.evaluation.variant_choice", "pipeline.evaluation.variant_windows"),
        *(f"pipeline.training.{m}" for m in ("cached_teacher", "deepspeed_config", "preflight", "run_folder")),
        *("pipeline.training.schedules", "pipeline.tokenizer"),
    },
    "data_prep": {
        *("pipeline.errors", "pipeline.exit_codes", "pipeline.flags", "pipeline.folder_claim", "pipeline.tokenizer"),
        *("pipeline.provenance", "pipeline.byte_counts"),
        *(f"pipeline.data.{m}" for m in ("shard_format", "shard_io", "tar_members", "sealed_json")),
    },
}
FORBIDDEN = {"pipeline.evaluation": {"pipeline.training"}, "pipeline": {"launchers", "data_prep"}}


def imports_of(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{a.name}" if f"{node.module}.{a.name}" in MODULES else node.module
                      for a in node.names}  # fmt: skip
    return found


def within(name: str, layer: str) -> bool:
    return name == layer or name.startswith(layer + ".")


IMPORTS = {name: imports_of(path) for name, path in MODULES.items()}


def ours(name: str) -> set[str]:
    return {i for i in IMPORTS[name] if i.split(".")[0] in PACKAGES}


@pytest.mark.parametrize("module", LIGHT)
def test_light_modules_stay_light(module):
    import sys

    foreign = {i.split(".")[0] for i in IMPORTS[module]} - set(sys.stdlib_module_names) - {"pipeline"}
    assert foreign <= LIGHT[module]


def test_layers_import_only_what_they_may():
    wrong = [
        f"{module} imports {name}"
        for module in MODULES
        for layer, allowed in ALLOWED.items()
        if within(module, layer)
        for name in ours(module)
        if not any(within(name, a) for a in allowed | {layer})
    ]
    wrong += [
        f"{module} imports {name}"
        for layer, forbidden in FORBIDDEN.items()
        for module in MODULES
        if within(module, layer)
        for name in ours(module)
        if any(within(name, f) for f in forbidden)
    ]
    assert not wrong


def test_no_circles():
    graph = {name: {i for i in ours(name) if i in MODULES} for name in MODULES if name != "pipeline"}
    list(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError


def test_nobody_imports_a_launcher():
    assert not [f"{m} imports {i}" for m in MODULES for i in ours(m) if within(i, "launchers")]
