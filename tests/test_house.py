import ast
import doctest
import importlib
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from dpsyn import compose
from dpsyn.build import build, config_folder, constructors

ROOT = Path(compose.__file__).parent
CONFIGS = config_folder()
GROUPS = ("api", "data", "embedding", "metric")  # their packages hold the contract, and a module a part

# a module imports what stands on its own floor or on one below; a package stands for all its modules
FLOORS = [
    {"", "errors", "marks"},
    {"files", "population", "processes", "randomness", "threads", "validate"},
    {"tables", "language", "networks", "reading"},
    {*GROUPS},
    {"privacy"},
    {"schedule", "evaluation"},
    {"cluster", "workers", "runs", "show"},
    {"job"},
    {"sides", "publish", "report"},
    {"build"},
    {"expanding", "planning", "checking", "evaluating", "starting", "completion", "compose"},
    {"execution"},
    {"cli", "__main__", "python"},
]
HEAVY = {
    "torch",
    "diffusers",
    "transformers",
    "sentence_transformers",
    "faiss",
    "datasets",
    "openai",
    "aiohttp",
    "matplotlib",
    "ray",
}


def modules():
    for path in sorted(ROOT.rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        yield ("" if name == "__init__" else name.removesuffix(".__init__")), path


def imported(path, top=True):
    tree = ast.parse(path.read_text())
    nodes = tree.body if top else list(ast.walk(tree))
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def floor(name):
    return next((number for number, names in enumerate(FLOORS) if name.split(".")[0] in names), None)


def part_of(name):
    """'api.draw_text' of 'api.draw_text.fonts', '' of a contract and of all that is no part."""
    names = name.split(".")
    return ".".join(names[:2]) if len(names) > 1 and names[0] in GROUPS else ""


def test_imports_keep_the_floors_of_the_house():
    known = {name for name, _ in modules()}
    for name, path in modules():
        found = imported(path, top=False)
        ours = {module.removeprefix("dpsyn").lstrip(".") for module in found if module.split(".")[0] == "dpsyn"}
        assert floor(name) is not None, f"{name} has no floor"
        if not name:  # what it gives to Python users is imported when it is first asked for
            assert ours <= {"python", *(f"python.{each}" for each in ("Run", "open", "plan", "run"))}
            continue
        for other in (ours & known) - {""}:
            if part := part_of(other):
                assert part == part_of(name), f"{name} imports the part {part}"
            else:
                assert floor(other) <= floor(name), f"{name} imports {other}, which stands above it"


def test_only_the_composer_imports_hydra():
    users = {
        name
        for name, path in modules()
        if any(m.split(".")[0] in ("hydra", "omegaconf") for m in imported(path, False))
    }
    assert users == {"compose"}


def test_only_the_ledger_opens_the_votes():
    users = {name for name, path in modules() if any(module.endswith("unseal") for module in imported(path, False))}
    assert users == {"privacy.ledger"}


def test_heavy_libraries_are_imported_inside_functions():
    for name, path in modules():
        heavy = {module.split(".")[0] for module in imported(path)} & HEAVY
        assert not heavy, f"{name} imports {heavy} at its head"


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from dpsyn.cli import main; main(['--help']); print(sorted(m.split('.')[0] for m in sys.modules))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    for name in (*HEAVY, "numpy", "hydra", "rich"):
        assert f"'{name}'" not in out


def test_nothing_is_pickled():
    for name, path in modules():
        assert not {m.split(".")[0] for m in imported(path, False)} & {"pickle", "dill", "joblib", "shelve"}, name


NO_PARTS = ("experiment", "prompts", "schemas")
YAMLS = sorted(path for path in CONFIGS.glob("*/*.yaml") if path.parent.name not in NO_PARTS)


def targets(node):
    if isinstance(node, dict):
        if "_target_" in node:
            yield node
        for part in node.values():
            yield from targets(part)
    elif isinstance(node, list):
        for part in node:
            yield from targets(part)


@pytest.mark.parametrize("path", YAMLS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_yaml_names_every_argument_of_its_part(path):
    for part in targets(yaml.safe_load(path.read_text())):
        module, name = part["_target_"].rsplit(".", 1)
        signature = inspect.signature(getattr(importlib.import_module(module), name))
        positional = {"votes", "size", "rng"} if module == "dpsyn.schedule.selection" else set()
        positional |= {"runtime", "answers_folder"}  # given to every part that takes one
        assert set(signature.parameters) - positional == set(part) - {"_target_", "_partial_"}


EXPERIMENTS = sorted(path.stem for path in (CONFIGS / "experiment").glob("*.yaml"))


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_composes_and_states_its_epsilon_and_delta(name):
    plain = compose.settings([f"+experiment={name}"])
    job = build(plain)
    assert job.privacy.delta is not None
    assert job.privacy.epsilon or job.privacy.noise_multiplier
    assert plain["name"] == name


@pytest.mark.parametrize("path", YAMLS, ids=lambda path: f"{path.parent.name}={path.stem}")
def test_every_yaml_composes(path):
    extra = ["+experiment=digits"] if path.parent.name != "data" else ["privacy.epsilon=1", "privacy.delta=1e-5"]
    if path.stem == "none" and path.parent.name == "privacy":
        extra = []
    compose.settings([f"{path.parent.name}={path.stem}", *extra])


@pytest.mark.parametrize("name", ["population", "schedule.steps", "privacy.votes", "tables.schema"])
def test_what_a_docstring_shows_is_so(name):
    found = doctest.testmod(importlib.import_module(f"dpsyn.{name}"), optionflags=doctest.IGNORE_EXCEPTION_DETAIL)
    assert found.attempted and not found.failed


def test_every_part_is_compared_with_its_contract_under_mypy():
    compared = Path(__file__).with_name("typed.py").read_text()
    for target in constructors():
        module, name = target.rsplit(".", 1)
        if module.split(".")[1] in GROUPS:
            assert re.search(rf"from {re.escape(module)} import .*\b{name}\b", compared), target
