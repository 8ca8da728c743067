"""From plain settings to the parts of a run: trusted constructors only, the runtime handed in."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dpsyn import api as apis
from dpsyn import embedding as embeddings
from dpsyn.api import Api
from dpsyn.data import Data, TableData
from dpsyn.embedding import Embedding
from dpsyn.errors import UserError, did_you_mean, first_line, invalid
from dpsyn.job import Job
from dpsyn.metric import Metric
from dpsyn.privacy.budget import Settings
from dpsyn.publish import published, resumable, target_of
from dpsyn.schedule import Schedule
from dpsyn.schedule.evolution import WithLabelShares
from dpsyn.tables.open import FIND, OPEN
from dpsyn.validate import choice, number, whole

IDENTITY = ("seed", "data", "api", "embedding", "privacy", "schedule", "label_shares")
AGREED = ("accept_lost_draws", "accept_joint_epsilon", "max_joint_epsilon")  # they may change while a run goes on
LIMITS = ("max_refused", "max_adjusted")  # of a data set: they change no vector
NEEDED = ("name", "seed", "run_dir", "label_shares", "expand.rows", "expand.degree", "metric.every_n_releases")
CARD = {"curator_type": ("Government", "Industry", "Nonprofit")}
NAME_LENGTH = 120  # characters of what is added to the name of a run of a sweep
ANSWERS, BARE_ANSWERS = "answers", "answers_not_private"  # folders of the cache


def config_folder() -> Path:
    """The yamls: inside the package when it is installed, beside it in a checkout."""
    here = Path(__file__).parent
    return next(path for path in (here / "configs", here.parent / "configs") if (path / "config.yaml").exists())


def _folder_name(swept: Sequence[str]) -> str:
    """What tells a member of a sweep from the others, in a name for its folder: 'privacy.epsilon-1-seed-2'.

    Where a value has characters that a shell, DuckDB or a file system takes for something, or is long, a hash of what
    was given keeps two of them apart.
    """
    given = "-".join(text.lstrip("+").replace("=", "-", 1) for text in sorted(swept))
    name = re.sub(r"[^\w.+-]+", "_", given)[:NAME_LENGTH].strip("_.-")
    return name if name == given else f"{name}-{hashlib.sha256(given.encode()).hexdigest()[:8]}"


def build(plain: Mapping[str, Any], swept: Sequence[str] = ()) -> Job:
    """The parts.

    plain: settings as `compose.settings` gives them.
    swept: what tells this run from the others of a multirun; it goes into the name of its directory.

    Raises UserError for settings that a part refuses.
    """
    trusted = plain.get("trusted_packages") or []
    if not isinstance(trusted, list):
        raise invalid("trusted_packages", trusted, "a list of package names")
    for name in ("data", "privacy", "schedule", "runtime", "metric", "expand"):
        _check_part(name, plain)
    privacy: Settings = built_part("privacy", plain["privacy"], trusted, {})
    for key in NEEDED:
        group, _, name = key.rpartition(".")
        if name not in (plain[group] if group else plain):
            raise invalid(key, "(deleted)", "a value", f"Leave ~{key} out.")
    # what a run without protection asked was chosen by exact votes: a private run that skips it would tell them
    answers = ANSWERS if privacy.is_private else BARE_ANSWERS
    given = {"runtime": plain["runtime"], "answers_folder": answers}
    runtime = built_part("runtime", plain["runtime"], trusted, {})
    schedule: Schedule = _contracted("schedule", Schedule, plain, trusted, given)
    hold_out, evaluate = _evaluation(plain)
    parts = _without_hold_out(plain)
    data: Data = _contracted("data", Data, parts, trusted, given)
    _check_open(data, schedule)
    if schedule.uses_api:
        for name in ("api", "embedding"):
            _check_part(name, plain)
        api: Api = _contracted("api", Api, parts, trusted, given)
        embed: Embedding = _contracted("embedding", Embedding, parts, trusted, given)
    else:
        plain = {**plain, "api": None, "embedding": None}
        api = apis.Unasked(data.schema.row_bytes if isinstance(data, TableData) else 0)
        embed = embeddings.Unasked()
    if plain["label_shares"] == "noisy":
        schedule = WithLabelShares(schedule)
    metrics = _metrics(parts, trusted, given)
    identity = {key: plain[key] for key in IDENTITY}
    if not hold_out:  # as before there was one: an older run goes on
        identity["data"] = {key: value for key, value in plain["data"].items() if key != "hold_out"}
    identity["privacy"] = {key: value for key, value in plain["privacy"].items() if key not in AGREED}
    if not plain["name"] or isinstance(plain["name"], dict | list):
        raise invalid("name", plain["name"], "a text")
    whole("expand.rows", plain["expand"]["rows"], 1, optional=True)
    whole("seed", plain["seed"])
    whole("metric.every_n_releases", plain["metric"]["every_n_releases"])
    return Job(
        name=str(plain["name"]),
        root=_root(plain, swept),
        seed=plain["seed"],
        data=data,
        api=api,
        embed=embed,
        privacy=privacy,
        schedule=schedule,
        shares=_shares(plain["label_shares"], len(data.labels)),
        metrics=metrics,
        every=plain["metric"]["every_n_releases"],
        expand_rows=plain["expand"]["rows"],
        expand_degree=plain["expand"]["degree"],
        runtime=runtime,
        identity=identity,
        cache_identity={
            "data": {key: value for key, value in plain["data"].items() if key not in (*LIMITS, "hold_out")},
            "embedding": plain["embedding"],
        },
        public=_public(plain, identity, [name for name, metric in metrics.items() if not metric.private], trusted),
        free=frozenset(resumable(identity)),
        hold_out=hold_out,
        evaluate=evaluate,
        measured_by={"metric": plain["metric"], "held_out": plain.get("held_out")},
    )


def _check_open(data: Data, schedule: Schedule) -> None:
    """Raises UserError for a schedule that reads rows of a schema whose values are not known."""
    if isinstance(data, TableData) and data.schema.open and not schedule.finds_values:
        name = next(iter(data.schema.open))
        raise invalid(f"schema.columns.{name}.values", OPEN, "a list of texts", FIND)


def _evaluation(plain: Mapping[str, Any]) -> tuple[float, float | None]:
    """data.hold_out and evaluate.epsilon. Raises UserError for what they cannot be."""
    hold_out, evaluate = plain["data"].get("hold_out", 0), plain.get("evaluate") or {"epsilon": None}
    number("data.hold_out", hold_out, "0, or a share below 1", 0, 0.9)
    if not isinstance(evaluate, Mapping):
        raise invalid("evaluate", evaluate, "evaluate.epsilon")
    number("evaluate.epsilon", evaluate.get("epsilon"), "a number over 0, or null", above=0, optional=True)
    return float(hold_out), None if evaluate.get("epsilon") is None else float(evaluate["epsilon"])


def _without_hold_out(settings: Any) -> Any:
    """Settings without data.hold_out, which is the run's and no setting of the part; nor where another part names
    ${data}."""
    if isinstance(settings, list):
        return [_without_hold_out(each) for each in settings]
    if not isinstance(settings, Mapping):
        return settings
    leave_out = "hold_out" if "_target_" in settings else None
    return {name: _without_hold_out(value) for name, value in settings.items() if name != leave_out}


def _metrics(plain: Mapping[str, Any], trusted: Sequence[str], given: Mapping[str, Any]) -> dict[str, Metric]:
    """By name; null takes one off a group of metrics."""
    parts = plain["metric"].get("parts") or {}
    if not isinstance(parts, dict):
        raise invalid("metric.parts", parts, "parts by their names")
    for name, part in parts.items():
        if part is not None and not (isinstance(part, dict) and "_target_" in part):
            raise invalid(f"metric.parts.{name}", part, "a part", "`dpsyn run --help` lists the options of metric.")
    chosen = {name: part for name, part in parts.items() if part is not None}
    return {name: built_part(f"metric.parts.{name}", part, trusted, given) for name, part in chosen.items()}


def _root(plain: Mapping[str, Any], swept: Sequence[str]) -> Path:
    root = plain["run_dir"]
    if not root or isinstance(root, dict | list):
        raise invalid("run_dir", root, "a directory that can be created")
    return Path(f"{root}-{_folder_name(swept)}" if swept else str(root))


def _public(
    plain: Mapping[str, Any], identity: Mapping[str, Any], metrics: Sequence[str], trusted: Sequence[str]
) -> dict[str, Any]:
    """What is assumed public, and published: all that has a part in a file under `release/`.

    metrics: names of those whose numbers stand there.
    """
    said = {**identity, "expand": plain["expand"], "card": _card(plain.get("card"))}
    said["metric"] = {
        "every_n_releases": plain["metric"]["every_n_releases"],
        "parts": {name: plain["metric"]["parts"][name] for name in metrics},
    }
    return {"name": str(plain["name"]), **{key: public_part(key, value, trusted) for key, value in said.items()}}


def _card(said: Any) -> dict[str, str]:
    """What the curator says of the release: texts by their names, without those that are null."""
    if not isinstance(said, Mapping | None):
        raise invalid("card", said, "texts by their names")
    told = {key: str(value) for key, value in (said or {}).items() if value is not None}
    for key, value in (said or {}).items():
        if isinstance(value, Mapping | list):
            raise invalid(f"card.{key}", value, "a text, or null")
    for key, allowed in CARD.items():
        if key in told:
            choice(f"card.{key}", told[key], allowed)
    if not re.fullmatch(r"|\d{4}-\d\d-\d\d", told.get("published", "")):
        raise invalid("card.published", told["published"], "a day, YYYY-MM-DD, or null")
    return told


def public_part(key: str, value: Any, trusted: Sequence[str] = ()) -> Any:
    return published(value, constructors(), trusted, is_data=key == "data")


def _check_part(name: str, plain: Mapping[str, Any]) -> None:
    part = plain.get(name)
    if not isinstance(part, dict) or ("_target_" not in part and name not in ("metric", "expand")):
        raise invalid(name, part or "(deleted)", "a part", f"`dpsyn run --help` lists the options of {name}.")


def _contracted(
    name: str, contract: type[Any], plain: Mapping[str, Any], trusted: Sequence[str], given: Mapping[str, Any]
) -> Any:
    """A part of a group. Raises UserError where it lacks what its contract asks for."""
    part = built_part(name, plain[name], trusted, given)
    if not isinstance(part, contract):
        asked = dict.fromkeys(m for each in contract.__mro__ for m in vars(each) if m[0] != "_")
        lacks = ", ".join(m for m in asked if not hasattr(part, m))
        do = f"It has no {lacks}: see dpsyn.{name}.{contract.__name__}."
        raise invalid(name, plain[name]["_target_"], f"a part of the group {name}", do)
    return part


def built_part(key: str, config: Any, trusted: Sequence[str], given: Mapping[str, Any]) -> Any:
    for target in _targets(config):
        _check_target(key, target, trusted)
    return _built(key, _with_given(config, given))


def _built(key: str, config: Any) -> Any:
    """Every mapping with a `_target_` is what that makes of the rest.

    Not hydra's `instantiate`: it would take a "${" in a prompt for an interpolation, after all of them were resolved.
    """
    if isinstance(config, list):
        return [_built(f"{key}.{at}", part) for at, part in enumerate(config)]
    if not isinstance(config, Mapping):
        return config
    inner = {
        name: _built(f"{key}.{name}", part) for name, part in config.items() if name not in ("_target_", "_partial_")
    }
    if "_target_" not in config:
        return inner
    target = target_of(str(config["_target_"]))
    try:
        return functools.partial(target, **inner) if config.get("_partial_") else target(**inner)
    except UserError:
        raise
    except Exception as error:
        if unknown := re.search(r"unexpected keyword argument '(\w+)'", str(error)):
            name = unknown.group(1)
            raise invalid(f"{key}.{name}", inner.get(name), f"a setting of {config['_target_']}") from None
        raise UserError(f"{key}: {first_line(error)}") from None


def _with_given(config: Any, given: Mapping[str, Any]) -> Any:
    """Hands the runtime, and the folder for answers, to every part that takes one: they stand in no part's yaml, so
    they identify no run."""
    if isinstance(config, list):
        return [_with_given(part, given) for part in config]
    if not isinstance(config, Mapping):
        return config
    whole = {key: _with_given(part, given) for key, part in config.items()}
    try:
        takes = set(inspect.signature(target_of(str(config["_target_"]))).parameters) if "_target_" in config else set()
    except (TypeError, ValueError):  # it does not say
        takes = set()
    return {**whole, **{name: value for name, value in given.items() if name in takes}}


def _targets(config: Any) -> Iterator[str]:
    if isinstance(config, Mapping):
        if "_target_" in config:
            yield str(config["_target_"])
        for part in config.values():
            yield from _targets(part)
    elif isinstance(config, list):
        for part in config:
            yield from _targets(part)


@functools.cache
def constructors() -> frozenset[str]:
    """All that may be a `_target_` of dpsyn: what its own yamls name. Nothing else of it can be called by a config."""
    yamls = config_folder().glob("*/*.yaml")
    return frozenset(name for path in yamls for name in re.findall(r"_target_: ([\w.]+)", path.read_text("utf-8")))


def _check_target(key: str, target: str, trusted: Sequence[str]) -> None:
    """A part of a trusted package is what that package itself defines: `mine.os.remove` is none."""
    package = target.split(".")[0]
    if target in constructors():
        return
    if package == "dpsyn":
        raise invalid(f"{key}._target_", target, "a part of dpsyn", did_you_mean(target, sorted(constructors())))
    if package not in trusted:
        do = "Name its package in trusted_packages=[...] on the command line if you trust it."
        raise invalid(f"{key}._target_", target, "a part of dpsyn", do)
    if importlib.util.find_spec(package) is None and any(Path(f"{package}{end}").exists() for end in ("", ".py")):
        sys.path.append(str(Path.cwd()))  # last, so that a folder's files stand in for nothing that is installed
    try:
        part = target_of(target)
    except (ImportError, AttributeError) as error:
        missing = f" ({error.name} is not installed)" if isinstance(error, ImportError) and error.name else ""
        raise UserError(f"{key}._target_={target}: there is no such part{missing}.") from None
    if str(getattr(part, "__module__", "")).split(".")[0] != package:
        raise invalid(f"{key}._target_", target, f"a part that {package} defines")


def _shares(declared: Any, n: int) -> np.ndarray:
    if declared in ("uniform", "noisy"):
        return np.full(n, 1 / n)
    good = (
        isinstance(declared, list)
        and len(declared) == n
        and all(isinstance(s, int | float) and s >= 0 for s in declared)
    )
    if not good or sum(declared) <= 0:
        raise invalid(
            "label_shares",
            declared,
            f"'uniform', one number a label ({n}), declared without the private data, or 'noisy'",
        )
    return np.asarray(declared, np.float64) / sum(declared)
