"""What of a run's settings may stand under `release/`, by the marks on the fields of its parts (`dpsyn/marks.py`)."""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from dpsyn.marks import PLACE, SECRET, SPEED

NOT_PUBLISHED = "(not published)"
NAME = re.compile(r"[\w.:@-]+(/[\w.:@-]+)*")  # of a model or a data set, on the hub or of an endpoint

Marks = Mapping[str, Mapping[str, str]]


def published(value: Any, own: Collection[str], trusted: Collection[str] = (), is_data: bool = False) -> Any:
    """The same settings, without what may not be published.

    value: settings, or a part of them.
    own: constructors that are dpsyn's own: unmarked settings of theirs are public.
    trusted: packages besides, whose modules may be imported to look at their marks. Of any other, nothing is published.
    is_data: of the private data: a name on the hub would say which they are.
    """
    if isinstance(value, list | tuple):
        return [published(each, own, trusted, is_data) for each in value]
    if not isinstance(value, Mapping):
        return value
    if "_target_" not in value:
        return {key: published(each, own, trusted, is_data) for key, each in value.items()}
    target = str(value["_target_"])
    is_own = target in own
    marks = marks_of(target) if is_own or target.split(".")[0] in trusted else {}
    kept = {}
    for key, each in value.items():
        rule = marks.get(key, {}).get("publish", "whole" if is_own else "never")
        if key in ("_target_", "_partial_") or (isinstance(each, Mapping) and "_target_" in each):
            rule = "whole"
        if rule == "whole":
            kept[key] = published(each, own, trusted, is_data)
        else:
            of_a_file = rule == PLACE["publish"] and isinstance(each, Mapping)  # its content, which is public: a schema
            kept[key] = dict(each) if of_a_file else _hidden(each, rule == PLACE["publish"] and not is_data)
    return kept


def marks_of(target: str) -> Marks:
    """Of the fields of a part that is a dataclass; {} for any other."""
    part = target_of(target)
    return {each.name: each.metadata for each in fields(part)} if is_dataclass(part) else {}


def resumable(config: Any) -> Iterator[str]:
    """Keys, `api.base_url` say, of the settings that may change when a run resumes. Imports what targets name."""
    return _marked(config, SPEED, None, "")


def secrets(config: Any, own: Collection[str]) -> Iterator[str]:
    """Keys of the settings of dpsyn's own parts that are never published.

    config: settings, or a part of them.
    own: constructors that are dpsyn's own.
    """
    return _marked(config, SECRET, own, "")


def _marked(config: Any, mark: Mapping[str, str], own: Collection[str] | None, where: str) -> Iterator[str]:
    if not isinstance(config, Mapping):
        return
    target = str(config.get("_target_", ""))
    if target and (own is None or target in own):
        marks = marks_of(target)
        yield from (f"{where}{name}" for name in config if name in marks and mark.items() <= marks[name].items())
    for key, part in config.items():
        yield from _marked(part, mark, own, f"{where}{key}.")


def target_of(target: str) -> Any:
    """What a `_target_` names. Raises ImportError or AttributeError where there is no such thing."""
    module, _, name = target.rpartition(".")
    return getattr(importlib.import_module(module), name)


def _hidden(value: Any, names: bool) -> Any:
    """names: whether a name, of a model say, may stay."""
    if isinstance(value, list | tuple):
        return [_hidden(each, names) for each in value]
    if value is None or value == {} or isinstance(value, bool):
        return value
    if names and isinstance(value, str):
        if value.startswith("https://"):
            return value.rsplit("/", 1)[-1].split("?")[0]
        if NAME.fullmatch(value) and not os.path.exists(value):  # a place that exists is no name, however it looks
            return value
    return NOT_PUBLISHED
