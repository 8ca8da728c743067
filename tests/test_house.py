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
    {"voters", "started"},
    {"build"},
    {"expanding", "planning", "checking", "evaluating", "starting", "completion", "compose"},
    {"under_dp"},
    {"execution"},
    {"arguments", "cli", "__main__", "python"},
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


def test_every_yaml_composes():
    groups = {
        name: [path.stem for path in YAMLS if path.parent.name == name] for name in {path.parent.name for path in YAMLS}
    }
    for at in range(max(map(len, groups.values()))):  # one of each group at a time
        chosen = {name: stems[at % len(stems)] for name, stems in groups.items()}
        given = [f"{name}={stem}" for name, stem in chosen.items()]
        compose.settings(["+experiment=digits", *given])  # each is chosen beside those of an experiment
        own = [] if chosen["privacy"] == "none" else ["privacy.epsilon=1", "privacy.delta=1e-5"]
        compose.settings([f"data={chosen['data']}", *own])


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


def classes(tree):
    """(class or None, function) of all that is public in a module."""
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield from ((node, each) for each in node.body if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef))
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield None, node


TREES = {name: ast.parse(path.read_text()) for name, path in modules()}
BASES = {
    node.name: {ast.unparse(base).split("[")[0].split(".")[-1] for base in node.bases}
    for tree in TREES.values()
    for node in ast.walk(tree)
    if isinstance(node, ast.ClassDef)
}
METHODS = {owner.name: set() for tree in TREES.values() for owner, _ in classes(tree) if owner is not None}
for tree in TREES.values():
    for owner, each in classes(tree):
        if owner is not None:
            METHODS[owner.name].add(each.name)
CONTRACTS = {  # what a part may have besides, as `Adopting`, is found by its methods alone
    group: {each.name for owner, each in classes(TREES[group]) if owner is not None} for group in (*GROUPS, "schedule")
}


def by_contract(name, owner, method):
    """Whether a contract says what the arguments of a method are."""
    bases = list(BASES.get(owner.name, ()))
    while bases:
        base = bases.pop()
        if method in METHODS.get(base, ()):
            return True
        bases += BASES.get(base, ())
    group = name.split(".")[0]
    return name != group and method in CONTRACTS.get(group, ())


def test_arguments_are_documented_one_a_line():
    """Of each public function with a docstring and two arguments or more; of a contract's methods by the contract."""
    missing = []
    for name, tree in TREES.items():
        for owner, each in classes(tree):
            given = each.args
            every = [*given.posonlyargs, *given.args, given.vararg, *given.kwonlyargs, given.kwarg]
            arguments = [one.arg for one in every if one is not None and one.arg not in ("self", "cls")]
            told = ast.get_docstring(each)
            if each.name.startswith("_") or told is None or len(arguments) < 2:
                continue
            if owner is not None and by_contract(name, owner, each.name):
                continue
            lines = [line.strip() for line in told.splitlines()]
            missing += [
                f"{name}.{each.name}: {argument}"
                for argument in arguments
                if not any(line.startswith(f"{argument}: ") for line in lines)
            ]
    assert not missing


def test_tests_use_public_names_of_dpsyn_alone():
    """What a test needs is public behaviour, or a thing with a name."""
    ours = {name for tree in TREES.values() for name in private_names(tree)}
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        tree = ast.parse(path.read_text())
        nodes = list(ast.walk(tree))
        used = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
        used |= {alias.name for node in nodes if isinstance(node, ast.ImportFrom) for alias in node.names}
        used |= {
            argument.value.rpartition(".")[2]
            for node in nodes
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "setattr"
            for argument in node.args
            if isinstance(argument, ast.Constant) and isinstance(argument.value, str)
        }
        own = set(private_names(tree))  # a test's own class may have some
        assert not (used & ours) - own, path


def private_names(tree):
    """Names with an underscore that are defined here: functions, classes, variables, fields."""
    for node in ast.walk(tree):
        name = ""
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            name = node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            name = node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            name = node.attr
        if re.match(r"_(?!_)\w", name):
            yield name
