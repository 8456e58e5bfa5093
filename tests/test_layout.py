"""The layout of the code: which folder may import which, how many files lie where, and the names users import."""

from __future__ import annotations

import ast
import importlib
from collections import defaultdict
from pathlib import Path

import networkx as nx
import pytest

import lfpgraph

ROOT = Path(__file__).parents[1]

# From the ground up: a room imports from those that stand before it in this table, and from no others.
ROOMS = (
    "errors", "native", "kernels", "modes", "numerics", "optional", "pages", "randomness", "registry", "secants", "threads",
    "writing",
    "rules.samples", "rules", "rules.lrp",
    "graph", "tracing", "composites", "passes", "engine", "live", "wrapping", "rewards", "explain",
    "onnx.registry", "onnx.runtime", "onnx.operators", "onnx.step", "onnx.imports", "onnx",
    "inputs", "training.resuming", "training", "reports", "audits", "adapters",
    "models_zoo", "comparison", "demo", "experiments.common", "experiments.architectures",
    "experiments.discrete", "experiments.transformers",
    "experiments", "cli", "__main__",
)  # fmt: skip
GROUND = {
    "errors", "native", "kernels", "modes", "numerics", "optional", "pages", "randomness", "registry", "secants", "threads",
    "writing",
}  # fmt: skip
ONLY_THE_GROUND = {"inputs", "rules", "rules.samples"}  # these import nothing else
PEOPLE_RUN = {
    "__main__",
    "cli",
    "demo",
    "experiments",
    "experiments.architectures",
    "experiments.common",
    "experiments.discrete",
    "experiments.transformers",
}  # and only these import the zoo

FILES = sorted(path for top in ("lfpgraph", "rules", "models_zoo") for path in (ROOT / top).rglob("*.py"))


def module_of(path: Path) -> str:
    """The dotted name that a file is imported by."""
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    if parts[0] != "lfpgraph":
        parts.insert(0, "lfpgraph")
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in FILES if not any(part.is_symlink() for part in path.parents)}


def room_of(module: str) -> str:
    """The most special room that a module lies in; "" for the package's own `__init__`."""
    inside = module.removeprefix("lfpgraph").removeprefix(".")
    fitting = [room for room in ROOMS if inside == room or inside.startswith(room + ".")]
    return max(fitting, key=len, default=inside)


def imports_of(module: str) -> set[str]:
    """Modules of this project that a module imports, also inside functions and for types only."""
    path = MODULES[module]
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*start, *(node.module.split(".") if node.module else [])])
            for alias in node.names:
                found.add(f"{source}.{alias.name}" if f"{source}.{alias.name}" in MODULES else source)
    return {name for name in found if name in MODULES and name != module}


@pytest.mark.parametrize("module", sorted(MODULES))
def test_no_import_runs_upwards(module: str) -> None:
    own = room_of(module)
    if not own:
        return  # `lfpgraph/__init__.py` names what users import, from everywhere
    assert own in ROOMS, f"{module} lies in no room of the table"
    allowed = set(ROOMS[: ROOMS.index(own) + 1])
    if own in ONLY_THE_GROUND:
        allowed = GROUND | {own}
    if own not in PEOPLE_RUN:
        allowed -= {"models_zoo"} - {own}
    for other in imports_of(module):
        assert room_of(other) in allowed, f"{module} imports {other}"


def test_there_is_no_circle() -> None:
    graph = nx.DiGraph()
    for module in MODULES:
        parents = {".".join(module.split(".")[:n]) for n in range(1, module.count(".") + 1)}
        graph.add_edges_from((module, other) for other in imports_of(module) - parents)
    assert list(nx.simple_cycles(graph)) == []


def test_no_module_bears_the_name_of_its_function() -> None:
    """`from .trace import trace` would leave a reader, and `monkeypatch`, to guess which of the two is meant."""
    found = []
    for module, path in MODULES.items():
        defined = [node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)]
        found += [module] if module.rpartition(".")[2] in defined else []
    assert found == []


def test_folders_are_small() -> None:
    files: dict[Path, int] = defaultdict(int)
    for top in ("lfpgraph", "rules", "models_zoo"):
        for path in (ROOT / top).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts and not any(p.is_symlink() for p in path.parents):
                files[path.parent] += 1
    assert files.pop(ROOT / "lfpgraph") <= 12
    assert {str(folder): n for folder, n in files.items() if n > 14} == {}


def test_every_folder_is_installed() -> None:
    listed = (ROOT / "pyproject.toml").read_text()
    packages = [module for module, path in MODULES.items() if path.name == "__init__.py"]
    assert [package for package in packages if f'"{package}"' not in listed] == []


def test_no_file_is_long() -> None:
    tests = (ROOT / "tests").rglob("*.py")
    assert [path.name for path in (*MODULES.values(), *tests) if len(path.read_text().splitlines()) > 300] == []


def test_no_test_imports_another() -> None:
    """What several test files share lies in `tests/support/`."""
    for path in (ROOT / "tests").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not [n for n in names if n.rpartition(".")[2].startswith("test_")], f"{path.name}: {names}"


PUBLIC = {
    "Attribution", "CheckReport", "Composite", "Conservation", "Contrast", "CoverageReport", "LfpGraphError", "OpGraph",
    "Ruleset", "Trainer", "attribute", "bits_by_importance", "centred", "check", "compare", "composite_names", "conservation",
    "coverage", "explain_wrap", "feedback", "from_reward_function", "get_composite", "hebbian", "importance", "is_wrapped",
    "lrp", "metrics", "onnx", "pictures", "policies", "prune", "quantise", "register_composite", "relevance_flow",
    "reward_loss", "rewards", "rivals", "rule", "spiking", "trace", "unwrap", "wrap",
}  # fmt: skip
PUBLIC_MODULES = {
    "centred": ["centred_structure"],
    "composites": ["Composite", "Ruleset", "composite_names", "get_composite", "register_composite"],
    "errors": ["LfpGraphError", "NoRuleError", "TraceError", "WrapError"],
    "hebbian": ["hebb", "oja"],
    "inputs": ["example_inputs", "TensorMaker"],
    "lrp": ["deep_taylor", "epsilon_gamma_box", "layer_composite"],
    "metrics": ["perturbation_curves", "sufficiency"],
    "models_zoo": ["ZOO", "build", "names"],
    "models_zoo.digits": ["cnn", "step_cnn", "vit"],
    "numerics": ["identity_signal", "stabilize"],
    "onnx": [
        "OrtTrainer",
        "StepResult",
        "export",
        "export_attribution",
        "export_forward",
        "export_training_step",
        "load",
    ],
    "onnx.registry": ["decomposes", "translates"],
    "pictures": ["flow_drawing", "heatmap"],
    "policies": ["AdaptiveClip", "NormalizeByMax", "Policies", "SmallestWeights", "TopK", "WeightScaled"],
    "registry": ["FAMILIES", "Family", "Rule", "find_rule", "registered_rules", "rule"],
    "rewards": ["PairwisePreference", "RateCodedSpikes", "ScalarReward", "Softmax", "SquaredError", "reward_loss"],
    "rivals": ["rival"],
    "rules.lrp": ["AlphaBeta", "Box", "Flat", "Gamma", "WSquare", "ZPlus"],
    "rules.samples": ["Sample", "samples"],
    "spiking": ["spiking_structure"],
    "training": ["Outcome", "Trainer"],
}


def test_the_public_names_are_there() -> None:
    """What users import has stayed where it was when the files behind it moved."""
    assert set(lfpgraph.__all__) >= PUBLIC
    assert [name for name in lfpgraph.__all__ if not hasattr(lfpgraph, name)] == []


@pytest.mark.parametrize("module", sorted(PUBLIC_MODULES))
def test_public_modules_import(module: str) -> None:
    if module == "training":
        pytest.importorskip("accelerate")
    found = importlib.import_module(f"lfpgraph.{module}")
    assert [name for name in PUBLIC_MODULES[module] if not hasattr(found, name)] == []
