"""From configs and overrides to parts. The only module that imports hydra."""

from __future__ import annotations

import functools
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

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

from dpsyn.build import IDENTITY, NAME_LENGTH, build, config_folder, constructors, public_part
from dpsyn.errors import UserError, did_you_mean, first_line, invalid
from dpsyn.job import Job
from dpsyn.language import prompts
from dpsyn.privacy import account
from dpsyn.publish import NOT_PUBLISHED, secrets
from dpsyn.runs.directory import RunDirectory, flat, mapping_in
from dpsyn.tables import schema
from dpsyn.validate import whole

DEFAULT = "+experiment=digits"
RUNTIME = "dpsyn.networks.runtime.Runtime"
CODE = ("trusted_packages", "trust_remote_code")  # settings that let code of others run
READERS = {
    "dpsyn.language.prompts.Prompts": ("prompts", prompts.read),
    "dpsyn.tables.schema.Schema": ("schemas", schema.read),
}
RENAMED = {  # before 0.1.0
    "schedule.folds": "schedule.variations",
    "schedule.keep": "schedule.keep_survivors",
    "schedule.drawn": "schedule.sampled_releases",
    "privacy.neighbours": "privacy.adjacency",
    "privacy.nearest": "privacy.votes_per_record",
    "privacy.shares": "privacy.budget_split",
    "privacy.label_budget": "privacy.label_shares_budget",
    "metric.every": "metric.every_n_releases",
    "api.missing": "api.missing_rate",
    "api.max_refused": "api.max_fallback_share",
    "api.max_stood_in": "api.max_fallback_share",
    "api.max_tokens_as": "api.max_tokens_param",
    "api.prompts.least_words": "api.prompts.min_words",
    "api.prompts.most_words": "api.prompts.max_parent_words",
    "data=hub": "data=images",
    "api=relay": "api=staged",
    "embedding=cells": "schedule=cells alone",
}
PLACES = ("path", "file", "fonts", "weights", "run_dir", "images", "folder")  # last words of keys of files


def with_default(overrides: Sequence[str]) -> list[str]:
    """Without an experiment and without data of one's own, the one that runs anywhere."""
    keys = {override.lstrip("+").split("=")[0] for override in overrides}
    return list(overrides) if keys & {"experiment", "data"} else [DEFAULT, *overrides]


def settings(overrides: Sequence[str], folder: str | None = None) -> dict[str, Any]:
    """All settings, resolved: plain dicts, lists, numbers, strings.

    overrides: `key=value` each, in Hydra's grammar.
    folder: the user's own configs (`--config-dir`); None: there are none.

    Raises UserError for an unknown key, group or value.
    """
    search = [f"hydra.searchpath=[file://{Path(folder).absolute()}]"] if folder else []
    if folder and not Path(folder).is_dir():
        raise invalid("--config-dir", folder, "a folder of configs")
    keys = {_key(text) for text in overrides}
    try:
        with initialize_config_dir(str(config_folder()), version_base="1.3"):
            config = hydra_compose("config", overrides=[*search, *overrides])
            if chosen := _chosen(overrides):
                own = [text for text in overrides if re.match(rf"[+~]*({'|'.join(chosen)})\b", text)]
                alone = hydra_compose("config", overrides=[*search, *own])
            for group in chosen:
                fresh = alone[group]
                with open_dict(config):
                    if group == "schedule":  # sizes and degrees of the experiment hold for any schedule that has them
                        for key in [key for key in config.schedule if key not in fresh]:
                            del config.schedule[key]
                    else:
                        config[group] = fresh
            if "run_dir" not in keys and not keys & {"experiment", "name"}:
                with open_dict(config):
                    config.run_dir = f"runs/{_own_name(config)}"
            plain = _resolved(config)
            if folder:
                _check_hydra(overrides, search)
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise UserError(_in_one_line(error, overrides)) from None
    _check_code(plain, overrides)
    if (rows := plain.pop("rows", None)) is not None:
        whole("rows", rows, 1)
        plain["expand"] = {**plain["expand"], "rows": rows}
    folders = [*([Path(folder)] if folder else []), config_folder()]
    # a schema is named by its data, held out ones and every metric
    return _with_files(plain, functools.cache(functools.partial(_read, folders)))


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
        return flat({key: public_part(key, plain.get(key)) for key in (*IDENTITY, "name")})

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


def _with_files(part: Any, read: Callable[[str, str], Mapping[str, Any]]) -> Any:
    """Prompt files and schemas by their content, so that what they say identifies the run: by the name of one of ours,
    or by a path. read: (target, name) to content."""
    if isinstance(part, list):
        return [_with_files(inner, read) for inner in part]
    if not isinstance(part, dict):
        return part
    whole = {key: _with_files(inner, read) for key, inner in part.items()}
    if isinstance(part.get("file"), str) and part.get("_target_") in READERS:
        whole["file"] = dict(read(part["_target_"], part["file"]))
    return whole


def _read(folders: Sequence[Path], target: str, name: str) -> Mapping[str, Any]:
    """folders: where ours are, in `prompts` and `schemas`."""
    kind, read = READERS[target]
    return read(name, *(folder / kind for folder in folders))


def _chosen(overrides: Sequence[str]) -> list[str]:
    """Groups whose part is chosen on the command line: an experiment's values were meant for its own part, not this."""
    keys = [override.split("=")[0] for override in overrides]
    groups = ("data", "api", "embedding", "metric", "schedule")
    return [group for group in groups if group in keys] if "+experiment" in keys else []


def readable(overrides: Sequence[str], sweep: bool) -> list[str]:
    """The overrides as Hydra reads them: values that its grammar does not know are quoted, `data.path=export (1).csv`
    say, and so are those that name a file or folder that is there.

    overrides: `key=value` each, as they were typed.
    sweep: whether A,B,C may be several values.

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

    overrides: of the multirun, in Hydra's grammar.
    folder: the user's own configs, among which a `glob` looks too; None: there are none.

    Raises UserError for values that cannot be counted.
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


def rebuilt(run: RunDirectory, overrides: Sequence[str], measured: bool = False, folder: str | None = None) -> Job:
    """The parts of a run that exists, from what it says of itself: `private/config.yaml` where a run of this user wrote
    it, or else `release/config.yaml`, which names no places.

    folder: the user's own configs; None: none.
    measured: with the metrics that it began with, or those of a group that is chosen (`metric=NAME`, also of the user's
        own configs in `folder`), and all that it publishes; only a run of this user can be measured.

    What a release says may be a stranger's. Only the settings that identify a run are taken, as plain values; places,
    addresses and the names of keys are given anew on the command line.

    run: its directory.
    overrides: of this command line, which win.
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
    except (OSError, ValueError, KeyError, TypeError, RecursionError, yaml.YAMLError):
        parts = False
    if not parts:
        raise UserError(f"{source}: these are no settings of a run of this version of dpsyn.")
    given = {_key(text) for text in overrides}
    if not known:
        said = {key: public_part(key, value) for key, value in said.items()}
        for key in secrets(said, constructors()):
            if flat(said)[key] != {} and not any(f"{each}.".startswith(f"{key}.") for each in given):
                raise invalid(key, "(not given)", "a value on the command line", "A release does not say whom to ask.")
    rest = {
        "name": run.root.name,
        "run_dir": str(run.root),
        "expand": {"rows": None, "degree": None},
        "metric": {"parts": {}, "every_n_releases": 0},
        "runtime": {"_target_": RUNTIME},
        "trusted_packages": [],
    }
    if measured:
        if not known:
            raise UserError(f"{run.root}: expected a run of yours, with its private/ folder. Others have no real data.")
        rest |= _measured_by(run, known, overrides, folder)
    plain: Any
    own_places: Any = OmegaConf.create()
    try:
        dotted = []
        for text in overrides:
            key, sign, value = text.partition("=")
            if measured and key == "metric":
                continue
            if sign and key.rpartition(".")[2] in PLACES and _is_there(value):
                OmegaConf.update(own_places, key, value)  # a file's name is no yaml
            else:
                dotted.append(text)
        plain = OmegaConf.to_container(OmegaConf.merge(rest, said, OmegaConf.from_dotlist(dotted), own_places))
    except (OmegaConfBaseException, yaml.YAMLError) as error:
        raise UserError(first_line(error)) from None
    _check_code(plain, overrides)
    if measured:
        folders = [*([Path(folder)] if folder else []), config_folder()]
        for key in ("metric", "held_out"):
            plain[key] = _with_files(plain[key], functools.cache(functools.partial(_read, folders)))
    path = (said["api"] or {}).get("path")
    moved = {NOT_PUBLISHED, *([path] if isinstance(path, str) else [])}
    return build(plain | {"api": _following(plain["api"], moved)})


def _measured_by(
    run: RunDirectory, known: Mapping[str, Any], overrides: Sequence[str], folder: str | None
) -> dict[str, Any]:
    """What a run of this user publishes besides its identity, and its metrics and their data, or a chosen group."""
    released = mapping_in(run.release / "config.yaml")
    measured: dict[str, Any] = dict(known.get("measured_by") or {"metric": None, "held_out": None})
    chosen = next((text.partition("=")[2] for text in reversed(overrides) if _key(text) == "metric"), None)
    if chosen is not None:
        folders = [*([Path(folder)] if folder else []), config_folder()]
        options = {path.stem: path for each in reversed(folders) for path in (each / "metric").glob("*.yaml")}
        if chosen not in options:
            raise invalid("metric", chosen, f"one of {', '.join(sorted(options))}", did_you_mean(chosen, list(options)))
        search = [f"hydra.searchpath=[file://{Path(folder).absolute()}]"] if folder else []
        try:
            with initialize_config_dir(str(config_folder()), version_base="1.3"):
                group = hydra_compose("config", overrides=[*search, f"metric={chosen}"]).metric
            # its ${held_out}, ${data.schema} and the like are those that the run began with
            plain = OmegaConf.to_container(group, resolve=False)
            whole = OmegaConf.create({**known["settings"], "held_out": measured["held_out"], "metric": plain})
            measured["metric"] = OmegaConf.to_container(whole.metric, resolve=True)
        except (HydraException, OmegaConfBaseException) as error:
            raise UserError(f"metric={chosen}: {first_line(error)}") from None
    metric = {"parts": {}, "every_n_releases": 0, **(measured["metric"] or {})}
    kept: dict[str, Any] = {key: released[key] for key in ("name", "expand", "card") if key in released}
    return {**kept, "metric": metric, "held_out": measured["held_out"]}


def _following(part: Any, moved: set[str], path: Any = None) -> Any:
    """A pool's data are where the pool is now: api.path stands for the paths of the parts inside it."""
    if not isinstance(part, Mapping):
        return part
    own = path if part.get("path") in moved and path else part.get("path")
    whole = {key: _following(inner, moved, own or path) for key, inner in part.items()}
    return {**whole, "path": own} if "path" in part else whole


def launch(arguments: Sequence[str], job: Callable[[list[str]], None]) -> None:
    """Hydra's own command line: --help, --cfg, and multirun, which calls `job` with the overrides of each run.

    arguments: of the command line, without the verb.
    job: called with the overrides of each run.
    """
    from hydra import main
    from hydra.core.hydra_config import HydraConfig

    held: list[BaseException] = []

    def task(_: DictConfig) -> None:
        _restore_logging()
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
        _restore_logging()


def _restore_logging() -> None:
    """Hydra's `job_logging: disabled` silences every logger that exists, and with them dpsyn's warnings."""
    logging.root.setLevel(logging.WARNING)
    for name in list(logging.root.manager.loggerDict):
        logging.getLogger(name).disabled = False


def check_launch(overrides: Sequence[str], folder: str | None) -> None:
    """Raises UserError for what Hydra would refuse in many lines, a launcher that is not installed say, and where the
    user's own configs change settings of Hydra, which name code.

    Of a sweep the fixed values alone: its jobs are composed one by one.

    overrides: of the command line, in Hydra's grammar.
    folder: the user's own configs; None: there are none.
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
        if key in RENAMED:
            return f"{given}: unknown key. It is {RENAMED[key]} now."
        return f"{given}: unknown key. {_near(key, _keys(overrides))}"
    if found := re.search(r"(?:In '.*': )?Could not find '([\w/]+)/([\w.-]+)'", text):
        group, name = found.groups()
        if f"{group}={name}" in RENAMED:
            return f"{group}={name}: unknown option. It is {RENAMED[f'{group}={name}']} now."
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
    return first_line(error)


def _near(key: str, known: Sequence[str]) -> str:
    return did_you_mean(key, [each for each in known if each != key]) or "`dpsyn run --cfg job` shows all keys."


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
