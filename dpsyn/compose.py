"""From configs and overrides to parts. The only module that imports hydra."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import inspect
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException
from omegaconf.resolvers.oc import env

from dpsyn import api as apis
from dpsyn import embedding as embeddings
from dpsyn.api import Api
from dpsyn.data import Data, TableData
from dpsyn.embedding import Embedding
from dpsyn.errors import UserError, did_you_mean, invalid
from dpsyn.job import Job
from dpsyn.language import prompts
from dpsyn.privacy import account
from dpsyn.privacy.budget import Settings
from dpsyn.runs.directory import RunDirectory, flat
from dpsyn.schedule import Schedule
from dpsyn.schedule.evolution import WithLabelShares
from dpsyn.tables import schema

IDENTITY = ("seed", "data", "api", "embedding", "privacy", "schedule", "label_shares")
DEFAULT = "+experiment=digits"
RUNTIME = "dpsyn.networks.runtime.Runtime"
CODE = ("trusted_packages", "trust_remote_code")  # settings that let code of others run
ANSWERS, BARE_ANSWERS = "answers", "answers_not_private"  # folders of the cache
READERS = {
    "dpsyn.language.prompts.Prompts": ("prompts", prompts.read),
    "dpsyn.tables.schema.Schema": ("schemas", schema.read),
}
AGREED = ("accept_lost_draws", "accept_joint_epsilon", "max_joint_epsilon")  # they may change while a run goes on
LIMITS = ("max_refused", "max_adjusted")  # of a data set: they change no vector
PLACES = ("path", "file", "fonts", "weights", "run_dir", "images", "folder")  # last words of keys of files
NEEDED = ("name", "seed", "run_dir", "label_shares", "expand.rows", "expand.degree", "metric.every")
NAME_LENGTH = 120  # characters of what is added to the name of a run of a sweep
ADDRESS = ("base_url", "api_key_env")  # whom a request goes to, and with which key
NOT_PUBLISHED = "(not published)"
PUBLISHED_NAME = re.compile(r"^[\w.-]+(/[\w.-]+)?$")
DECLARED = (("data", "labels"), ("data", "label_columns"), ("data", "label_values"))
SECRET = re.compile(
    r"key|token|secret|password|auth|cookie|credential", re.IGNORECASE
)  # in the name of a request's parameter


def config_folder() -> Path:
    """The yamls: inside the package when it is installed, beside it in a checkout."""
    here = Path(__file__).parent
    return next(path for path in (here / "configs", here.parent / "configs") if (path / "config.yaml").exists())


def with_default(overrides: Sequence[str]) -> list[str]:
    """Without an experiment and without data of one's own, the one that runs anywhere."""
    keys = {override.lstrip("+").split("=")[0] for override in overrides}
    return list(overrides) if keys & {"experiment", "data"} else [DEFAULT, *overrides]


def settings(overrides: Sequence[str], folder: str | None = None) -> dict[str, Any]:
    """All settings, resolved: plain dicts, lists, numbers, strings. folder: the user's own configs (`--config-dir`).

    Raises UserError for an unknown key, group or value.
    """
    search = [f"hydra.searchpath=[file://{Path(folder).absolute()}]"] if folder else []
    if folder and not Path(folder).is_dir():
        raise invalid("--config-dir", folder, "a folder of configs")
    keys = {_key(text) for text in overrides}
    try:
        with initialize_config_dir(str(config_folder()), version_base="1.3"):
            config = hydra_compose("config", overrides=[*search, *overrides])
            for group in _chosen(overrides):
                own = [text for text in overrides if re.match(rf"[+~]*{group}\b", text)]
                with open_dict(config):
                    config[group] = hydra_compose("config", overrides=[*search, *own])[group]
            if "run_dir" not in keys and not keys & {"experiment", "name"}:
                with open_dict(config):
                    config.run_dir = f"runs/{_own_name(config)}"
            plain = _resolved(config)
            if folder:
                _check_hydra(overrides, search)
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise UserError(_in_one_line(error, overrides)) from None
    _check_code(plain, overrides)
    return _with_files(plain, [*([Path(folder)] if folder else []), config_folder()])


def _own_name(config: DictConfig) -> str:
    """Of the folder of a run on the user's own data: their id, or the name of their file. It is not published."""
    data = config.data
    path = str(OmegaConf.select(data, "path") or "").rstrip("/")
    name = str(OmegaConf.select(data, "id") or Path(path).name.split(".")[0] or config.name)
    return re.sub(r"[^\w.+-]+", "_", name)[:NAME_LENGTH].strip("_.-") or str(config.name)


def _resolved(config: DictConfig) -> dict[str, Any]:
    """Plain settings. Raises UserError where one that is published depends on an environment variable.

    Whether one does shows when the variables have other values: an interpolation can lead there over many keys.
    """
    asked: list[str] = []

    def read(more: str, name: str, *default: Any) -> str | None:
        asked.append(name)
        value = env(name, *default)
        return value if value is None else value + more

    def container(more: str) -> dict[str, Any]:
        OmegaConf.register_new_resolver("oc.env", functools.partial(read, more), replace=True)
        plain: Any = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
        return dict(plain)

    def public(plain: Mapping[str, Any]) -> dict[str, Any]:
        return flat({key: published(plain.get(key), (key,)) for key in (*IDENTITY, "name")})

    try:
        plain = container("")
        if asked:
            before, after = public(plain), public(container("1"))
            differing = sorted(key for key in before.keys() | after.keys() if before.get(key) != after.get(key))
            if differing:
                do = f"Write its value on the command line: {differing[0]}=..."
                raise invalid(differing[0], "${oc.env:...}", "a value that is no secret, since it is published", do)
        return plain
    finally:
        OmegaConf.register_new_resolver("oc.env", env, replace=True)


def _check_hydra(overrides: Sequence[str], search: Sequence[str]) -> None:
    """Hydra's own settings name code (launchers, callbacks, logging): they come from dpsyn and the command line."""

    def hydra(given: Sequence[str]) -> Any:
        config = hydra_compose("config", overrides=list(given), return_hydra_config=True).hydra
        plain: Any = OmegaConf.to_container(config, resolve=False)
        for key in ("overrides", "runtime", "searchpath"):
            plain.pop(key)
        plain["job"].pop("override_dirname")
        return plain

    if hydra([*search, *overrides]) != hydra([text for text in overrides if _key(text).startswith("hydra")]):
        raise invalid(
            "--config-dir", search[0].split("file://")[1][:-1], "configs that leave the settings of hydra alone"
        )


def _check_code(plain: Mapping[str, Any], overrides: Sequence[str]) -> None:
    """Raises UserError where a config, and not the command line, lets code of others run."""
    given = {_key(text) for text in overrides}
    for key, value in flat(plain).items():
        if key.rpartition(".")[2] in CODE and value not in (None, False, []) and key not in given:
            raise invalid(
                key, value, "a setting of the command line", f"Add {key}={_as_override(value)} if you trust it."
            )


def _key(override: str) -> str:
    return override.lstrip("+~").split("=")[0]


def _as_override(value: Any) -> str:
    return f"[{','.join(map(str, value))}]" if isinstance(value, list) else str(value).lower()


def _with_files(part: Any, folders: Sequence[Path]) -> Any:
    """Prompt files and schemas by their content, so that what they say identifies the run: by the name of one of ours,
    or by a path. folders: where ours are, in `prompts` and `schemas`."""
    if isinstance(part, list):
        return [_with_files(inner, folders) for inner in part]
    if not isinstance(part, dict):
        return part
    whole = {key: _with_files(inner, folders) for key, inner in part.items()}
    if isinstance(part.get("file"), str) and part.get("_target_") in READERS:
        kind, read = READERS[part["_target_"]]
        whole["file"] = dict(read(part["file"], *(folder / kind for folder in folders)))
    return whole


def _chosen(overrides: Sequence[str]) -> list[str]:
    """Groups whose part is chosen on the command line: an experiment's values were meant for its own part, not this."""
    keys = [override.split("=")[0] for override in overrides]
    return [group for group in ("data", "api", "embedding", "metric") if group in keys] if "+experiment" in keys else []


def readable(overrides: Sequence[str], sweep: bool) -> list[str]:
    """The overrides as Hydra reads them: values that its grammar does not know are quoted, `data.path=export (1).csv`
    say, and so are those that name a file or folder that is there. sweep: whether A,B,C may be several values.

    Raises UserError for several values without a sweep.
    """
    parser = OverridesParser.create()
    return [_readable(text, sweep, parser) for text in overrides]


def _readable(text: str, sweep: bool, parser: OverridesParser) -> str:
    key, sign, value = text.partition("=")
    if not sign or not re.fullmatch(r"[+~]*[\w.@/:-]+", key):
        return text
    if key == "experiment":
        text, key = f"+{text}", "+experiment"
    if value.isspace() or (key.endswith("delimiter") and value == r"\t"):
        return f"{key}='{value.replace(chr(92) + 't', chr(9))}'"
    try:
        (parsed,) = parser.parse_overrides([text])
        if parsed.is_sweep_override():
            if not sweep and not _is_there(value):
                do = f"Add -m for a run of each, or quote it as one value: {key}=\"'{value}'\"."
                raise invalid(key.lstrip("+"), value, "one value", do)
            if sweep:
                return text
        elif key.rpartition(".")[2] not in PLACES or parsed.value() == value or not _is_there(value):
            return text
    except HydraException:
        pass
    if "${" in value or "\n" in value:
        return text
    several = sweep and not _is_there(value) and len(value) > 1
    return f"{key}={','.join(_quoted(part) for part in (value.split(',') if several else [value]))}"


def _quoted(value: str) -> str:
    escaped = re.sub(r"(\\*)'", r"\1\1\\'", value)
    trailing = len(escaped) - len(escaped.rstrip("\\"))
    return f"'{escaped}{chr(92) * trailing}'"


def _is_there(value: str) -> bool:
    return os.path.exists(os.path.expanduser(value))


def members(overrides: Sequence[str], folder: str | None = None) -> Iterator[tuple[list[str], list[str]]]:
    """(all overrides but Hydra's own, the swept ones) of each job of a multirun, in Hydra's order and spelling.

    folder: the user's own configs, among which a `glob` looks too. Raises UserError for values that cannot be counted.
    """
    mine = [text for text in overrides if not _key(text).startswith("hydra")]
    try:
        with initialize_config_dir(str(config_folder()), version_base="1.3"):
            loader = GlobalHydra.instance().config_loader()
            if folder:
                loader.get_search_path().append("command-line", f"file://{Path(folder).absolute()}")
                loader = ConfigLoaderImpl(loader.get_search_path())
            parsed = OverridesParser.create(config_loader=loader).parse_overrides(mine)
            for override in parsed:
                if override.is_sweep_override() and not override.is_discrete_sweep():
                    value = str(override.input_line).partition("=")[2]
                    do = "Give them as A,B,C, choice(A,B), range(1,5) or glob(*)."
                    raise invalid(override.get_key_element(), value, "values that can be counted", do)
            (jobs,) = BasicSweeper.split_arguments(parsed, None)
    except HydraException as error:
        raise UserError(_in_one_line(error, overrides)) from None
    swept = {override.get_key_element() for override in parsed if override.is_sweep_override()}
    for texts in jobs:
        yield list(texts), [text for text in texts if text.partition("=")[0] in swept]


def _folder_name(swept: Sequence[str]) -> str:
    """What tells a member of a sweep from the others, in a name for its folder: 'privacy.epsilon-1-seed-2'.

    Where a value has characters that a shell, DuckDB or a file system takes for something, or is long, a hash of what
    was given keeps two of them apart.
    """
    given = "-".join(text.lstrip("+").replace("=", "-", 1) for text in sorted(swept))
    name = re.sub(r"[^\w.+-]+", "_", given)[:NAME_LENGTH].strip("_.-")
    return name if name == given else f"{name}-{hashlib.sha256(given.encode()).hexdigest()[:8]}"


def build(plain: Mapping[str, Any], swept: Sequence[str] = ()) -> Job:
    """The parts. swept: what tells this run from the others of a multirun; it goes into the name of its directory.

    Raises UserError for settings that a part refuses.
    """
    trusted = plain.get("trusted_packages") or []
    if not isinstance(trusted, list):
        raise invalid("trusted_packages", trusted, "a list of package names")
    for name in ("data", "privacy", "schedule", "runtime", "metric", "expand"):
        _check_part(name, plain)
    privacy: Settings = _part("privacy", plain["privacy"], trusted, {})
    for key in NEEDED:
        group, _, name = key.rpartition(".")
        if name not in (plain[group] if group else plain):
            raise invalid(key, "(deleted)", "a value", f"Leave ~{key} out.")
    # what a run without protection asked was chosen by exact votes: a private run that skips it would tell them
    answers = ANSWERS if privacy.is_private else BARE_ANSWERS
    given = {"runtime": plain["runtime"], "answers_folder": answers}
    runtime = _part("runtime", plain["runtime"], trusted, {})
    schedule: Schedule = _contracted("schedule", Schedule, plain, trusted, given)
    data: Data = _contracted("data", Data, plain, trusted, given)
    if schedule.uses_api:
        for name in ("api", "embedding"):
            _check_part(name, plain)
        api: Api = _contracted("api", Api, plain, trusted, given)
        embed: Embedding = _contracted("embedding", Embedding, plain, trusted, given)
    else:
        plain = {**plain, "api": None, "embedding": None}
        api = apis.Unasked(data.schema.row_bytes if isinstance(data, TableData) else 0)
        embed = embeddings.Unasked()
    if plain["label_shares"] == "noisy":
        schedule = WithLabelShares(schedule)
    measured = plain["metric"].get("parts") or {}
    if not isinstance(measured, dict):
        raise invalid("metric.parts", measured, "parts by their names")
    for name, part in measured.items():
        if part is not None and not (isinstance(part, dict) and "_target_" in part):
            raise invalid(f"metric.parts.{name}", part, "a part", "`dpsyn run --help` lists the options of metric.")
    metrics = {
        name: _part(f"metric.parts.{name}", part, trusted, given)
        for name, part in measured.items()
        if part is not None  # taken off a group of metrics
    }
    identity = {key: plain[key] for key in IDENTITY}
    identity["privacy"] = {key: value for key, value in plain["privacy"].items() if key not in AGREED}
    root = str(plain["run_dir"])
    if not root or isinstance(plain["run_dir"], dict | list | None):
        raise invalid("run_dir", plain["run_dir"], "a directory that can be created")
    if not plain["name"] or isinstance(plain["name"], dict | list):
        raise invalid("name", plain["name"], "a text")
    if swept:
        root += f"-{_folder_name(swept)}"
    rows = plain["expand"]["rows"]
    if rows is not None and (isinstance(rows, bool) or not isinstance(rows, int) or rows < 1):
        raise invalid("expand.rows", rows, "null, or a whole number")
    seed, every = plain["seed"], plain["metric"]["every"]
    for key, value in (("seed", seed), ("metric.every", every)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise invalid(key, value, "a whole number, 0 or more")
    return Job(
        name=str(plain["name"]),
        root=Path(root),
        seed=seed,
        data=data,
        api=api,
        embed=embed,
        privacy=privacy,
        schedule=schedule,
        shares=_shares(plain["label_shares"], len(data.labels)),
        metrics=metrics,
        every=every,
        expand_rows=rows,
        expand_degree=plain["expand"]["degree"],
        runtime=runtime,
        identity=identity,
        cache_identity={
            "data": {key: value for key, value in plain["data"].items() if key not in LIMITS},
            "embedding": plain["embedding"],
        },
        public=_public(plain, identity, [name for name, metric in metrics.items() if not metric.private]),
        free=frozenset(_operational(identity)),
    )


def _public(plain: Mapping[str, Any], identity: Mapping[str, Any], metrics: Sequence[str]) -> dict[str, Any]:
    """What is assumed public, and published: all that has a part in a file under `release/`.

    metrics: names of those whose numbers stand there.
    """
    said = {**identity, "expand": plain["expand"]}
    said["metric"] = {
        "every": plain["metric"]["every"],
        "parts": {name: plain["metric"]["parts"][name] for name in metrics},
    }
    return {"name": str(plain["name"]), **{key: published(value, (key,)) for key, value in said.items()}}


def _check_part(name: str, plain: Mapping[str, Any]) -> None:
    part = plain.get(name)
    if not isinstance(part, dict) or ("_target_" not in part and name not in ("metric", "expand")):
        raise invalid(name, part or "(deleted)", "a part", f"`dpsyn run --help` lists the options of {name}.")


def _contracted(
    name: str, contract: type[Any], plain: Mapping[str, Any], trusted: Sequence[str], given: Mapping[str, Any]
) -> Any:
    """A part of a group. Raises UserError where it lacks what its contract asks for."""
    part = _part(name, plain[name], trusted, given)
    if not isinstance(part, contract):
        lacks = ", ".join(m for m in vars(contract) if m[0] != "_" and not hasattr(part, m))
        do = f"It has no {lacks}: see dpsyn.{name}.{contract.__name__}."
        raise invalid(name, plain[name]["_target_"], f"a part of the group {name}", do)
    return part


def rebuilt(run: RunDirectory, overrides: Sequence[str]) -> Job:
    """The parts of a run that exists, from what it says of itself: `private/config.yaml` where a run of this user
    wrote it, or else `release/config.yaml`, which names no places.

    What a release says may be a stranger's. Only the settings that identify a run are taken, as plain values; places,
    addresses and the names of keys are given anew on the command line.
    """
    import yaml

    own = run.private / "config.yaml"
    known = run.identity() if own.exists() and account.wrote(own.read_bytes()) else None
    source = run.release / "config.yaml"
    try:
        said = known["settings"] if known else yaml.safe_load(source.read_text(encoding="utf-8"))
        said = {key: said[key] for key in IDENTITY}
        parts = all(isinstance(said[key], dict) for key in ("data", "privacy", "schedule"))
        parts &= all(isinstance(said[key], dict | None) for key in ("api", "embedding"))
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError):
        parts = False
    if not parts:
        raise UserError(f"{source}: these are no settings of a run of this version of dpsyn.")
    given = {_key(text) for text in overrides}
    if not known:
        said = {key: published(value, (key,)) for key, value in said.items()}
        for key in flat(said):
            if key.rpartition(".")[2] in ADDRESS and key not in given:
                raise invalid(key, "(not given)", "a value on the command line", "A release does not say whom to ask.")
    rest = {
        "name": run.root.name,
        "run_dir": str(run.root),
        "expand": {"rows": None, "degree": None},
        "metric": {"parts": {}, "every": 0},
        "runtime": {"_target_": RUNTIME},
        "trusted_packages": [],
    }
    plain: Any
    own_places: Any = OmegaConf.create()
    try:
        dotted = []
        for text in overrides:
            key, sign, value = text.partition("=")
            if sign and key.rpartition(".")[2] in PLACES and _is_there(value):
                OmegaConf.update(own_places, key, value)  # a file's name is no yaml
            else:
                dotted.append(text)
        plain = OmegaConf.to_container(OmegaConf.merge(rest, said, OmegaConf.from_dotlist(dotted), own_places))
    except (OmegaConfBaseException, yaml.YAMLError) as error:
        raise UserError(_first_line(error)) from None
    _check_code(plain, overrides)
    path = (said["api"] or {}).get("path")
    moved = {NOT_PUBLISHED, *([path] if isinstance(path, str) else [])}
    return build(plain | {"api": _following(plain["api"], moved)})


def _following(part: Any, moved: set[str], path: Any = None) -> Any:
    """A pool's data are where the pool is now: api.path stands for the paths of the parts inside it."""
    if not isinstance(part, Mapping):
        return part
    own = path if part.get("path") in moved and path else part.get("path")
    whole = {key: _following(inner, moved, own or path) for key, inner in part.items()}
    return {**whole, "path": own} if "path" in part else whole


def launch(arguments: Sequence[str], job: Callable[[list[str]], None]) -> None:
    """Hydra's own command line: --help, --cfg, and multirun, which calls `job` with the overrides of each run."""
    from hydra import main
    from hydra.core.hydra_config import HydraConfig

    held: list[BaseException] = []

    def task(_: DictConfig) -> None:
        _enable_loggers()
        try:
            job(list(HydraConfig.get().overrides.task))
        except BaseException as error:  # Hydra would print it in its own way
            held.append(error)
            raise SystemExit(2) from None

    sys.argv = ["dpsyn run", *arguments]
    try:
        main(version_base="1.3", config_path=str(config_folder()), config_name="config")(task)()
    except SystemExit:
        if held:
            raise held[0] from None
        raise
    finally:
        _enable_loggers()


def _enable_loggers() -> None:
    """Hydra's `job_logging: disabled` disables every logger that exists, and with them dpsyn's warnings."""
    for name in list(logging.root.manager.loggerDict):
        logging.getLogger(name).disabled = False


def check_launch(overrides: Sequence[str], folder: str | None) -> None:
    """Raises UserError for what Hydra would refuse in many lines, a launcher that is not installed say, and where the
    user's own configs change settings of Hydra, which name code.

    Of a sweep the fixed values alone: its jobs are composed one by one.
    """
    search = [f"hydra.searchpath=[file://{Path(folder).absolute()}]"] if folder else []
    try:
        fixed = [
            str(override.input_line)
            for override in OverridesParser.create().parse_overrides(list(overrides))
            if not override.is_sweep_override()
        ]
        with initialize_config_dir(str(config_folder()), version_base="1.3"):
            hydra_compose("config", overrides=[*search, *fixed], return_hydra_config=True)
            if folder:
                _check_hydra(fixed, search)
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise UserError(_in_one_line(error, overrides)) from None


def published(value: Any, where: tuple[str, ...]) -> Any:
    """What may stand in `release/config.yaml`: no data path, no address, no key, no place on this machine.

    Declared labels, prompts and schemas stand there word by word: they are assumed public.
    """
    if isinstance(value, Mapping):
        return {key: published(part, (*where, str(key))) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [published(part, where) for part in value]
    content = set(where) & {"prompts", "schema"} and "file" in where[:-1]  # of a file that was read; not its place
    if not isinstance(value, str) or content or (len(where) > 2 and where[:2] in DECLARED):
        return value
    name = where[-1]
    if where[0] in ("api", "embedding") and name in ("path", "weights") and value.startswith("https://"):
        return value.rsplit("/", 1)[-1].split("?")[0]  # which network: its file's name
    secret = name in ("path", "base_url", "api_key", "token") or name.endswith(("_key", "_token", "_path", "_url"))
    secret |= "extra" in where and bool(SECRET.search(name))
    place = "://" in value or value.startswith(("/", "~", "./", "../", "\\")) or value[1:3] == ":\\"
    there = os.path.exists(value)  # then it is no name on the hub, however it looks
    place |= "/" in value and there
    hub_name = name == "path" and where[0] != "data" and PUBLISHED_NAME.match(value) and not there
    if (secret and not hub_name) or place:
        return NOT_PUBLISHED
    return value


def _part(key: str, config: Any, trusted: Sequence[str], given: Mapping[str, Any]) -> Any:
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
    target = _found(str(config["_target_"]))
    try:
        return functools.partial(target, **inner) if config.get("_partial_") else target(**inner)
    except UserError:
        raise
    except Exception as error:
        if unknown := re.search(r"unexpected keyword argument '(\w+)'", str(error)):
            name = unknown.group(1)
            raise invalid(f"{key}.{name}", inner.get(name), f"a setting of {config['_target_']}") from None
        raise UserError(f"{key}: {_first_line(error)}") from None


def _with_given(config: Any, given: Mapping[str, Any]) -> Any:
    """Hands the runtime, and the folder for answers, to every part that takes one: they stand in no part's yaml, so
    they identify no run."""
    if isinstance(config, list):
        return [_with_given(part, given) for part in config]
    if not isinstance(config, Mapping):
        return config
    whole = {key: _with_given(part, given) for key, part in config.items()}
    try:
        takes = set(inspect.signature(_found(str(config["_target_"]))).parameters) if "_target_" in config else set()
    except (TypeError, ValueError):  # it does not say
        takes = set()
    return {**whole, **{name: value for name, value in given.items() if name in takes}}


def _found(target: str) -> Any:
    module, _, name = target.rpartition(".")
    return getattr(importlib.import_module(module), name)


def _operational(config: Any, where: str = "") -> Iterator[str]:
    """Keys, `api.base_url` say, of the settings that a part calls operational."""
    if not isinstance(config, Mapping):
        return
    if "_target_" in config:
        yield from (f"{where}{name}" for name in getattr(_found(str(config["_target_"])), "operational", ()))
    for key, part in config.items():
        yield from _operational(part, f"{where}{key}.")


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
        part = _found(target)
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


def _in_one_line(error: Exception, overrides: Sequence[str]) -> str:
    text = str(error)
    if found := re.search(r"Could not override '([\w.@/]+)'", text) or re.search(
        r"Key '([\w.]+)' is not in struct", text
    ):
        key = found.group(1)
        given = next((text for text in overrides if _key(text) == key), key)
        given = re.sub(r"='(.*)'$", r"=\1", given)  # as it was typed, before it was quoted
        if key in _groups():
            return f"{given.lstrip('+')}: expected the name of an option. `dpsyn run --help` lists them."
        if "No match in the defaults list" in text:
            return f"{given}: there is no config group '{key}'. {_near(key, _groups())}"
        return f"{given}: unknown key. {_near(key, _keys(overrides))}"
    if found := re.search(r"(?:In '.*': )?Could not find '([\w/]+)/([\w.-]+)'", text):
        group, name = found.groups()
        said = re.search(r"Available options in '[\w/]+':(.*)", text, re.DOTALL)
        ours = [path.stem for path in (config_folder() / group).glob("*.yaml")]
        options = sorted(said.group(1).split("Config search path")[0].split() if said and not ours else ours)
        return f"{group}={name}: expected one of {', '.join(options)}. {_near(name, options)}".strip()
    if "Config group override must be a string" in text:
        groups = (*_groups(), "hydra")
        named = next((each for each in overrides if _key(each) in groups and not re.search(r"=[a-z]", each)), "")
        named = next((each for each in overrides if _key(each) in groups and each.endswith("=null")), named)
        return f"{named.lstrip('+')}: expected the name of an option. `dpsyn run --help` lists them."
    if "Missing mandatory value" in text:
        key = getattr(error, "full_key", None) or text.split(":")[-1].strip()
        return f"{key}: a value is missing. Give it as {key}=..."
    return _first_line(error)


def _near(key: str, known: Sequence[str]) -> str:
    return did_you_mean(key, known) or "`dpsyn run --cfg job` shows all keys."


def _groups() -> list[str]:
    return sorted(path.name for path in config_folder().iterdir() if path.is_dir())


def _keys(overrides: Sequence[str]) -> list[str]:
    """Of the parts that were chosen."""
    chosen = [text for text in overrides if text.lstrip("+").split("=")[0] in _groups()]
    for some in (chosen, [DEFAULT]):
        with suppress(HydraException, OmegaConfBaseException, ValueError):
            with initialize_config_dir(str(config_folder()), version_base="1.3"):
                found: Any = OmegaConf.to_container(hydra_compose("config", overrides=some), resolve=False)
            return [key for key in flat(found) if "_target_" not in key]
    return []


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
