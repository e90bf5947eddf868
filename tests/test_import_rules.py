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
    **{m: {"jsonargparse"} for m in MODULES if m.startswith("pipeline.config")},
    "pipeline.data.shard_format": {"numpy"},
    "pipeline.attention.window": {"numpy"},
}
ALLOWED = {  # layer -> layers of ours it may import
    "pipeline.errors": set(),
    "pipeline.config": {"pipeline.errors"},
    "pipeline.ahn": {"pipeline.errors"},
    "pipeline.distributed": {"pipeline.errors"},
    "pipeline.attention": {"pipeline.errors"},
    "pipeline.losses": {"pipeline.errors", "pipeline.teacher.signals", "pipeline.attention.window"},
    "pipeline.data": {"pipeline.errors", "pipeline.attention.window", "pipeline.losses.positions"},
    "pipeline.model": {
        *("pipeline.errors", "pipeline.config", "pipeline.ahn", "pipeline.attention", "pipeline.distributed")
    },
    "pipeline.metrics": {"pipeline.errors", "pipeline.config", "pipeline.attention.window"},
    "data_prep": {"pipeline.errors", "pipeline.data.shard_format"},
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
