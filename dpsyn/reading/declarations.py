"""Loads public yaml files, the schemas of tables and prompts, by name or path."""

from __future__ import annotations

import datetime
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dpsyn.errors import did_you_mean, invalid

NUMBERS = {
    "tag:yaml.org,2002:int": re.compile(r"[-+]?(0|[1-9][0-9]*)$"),
    "tag:yaml.org,2002:float": re.compile(
        r"[-+]?(([0-9]+\.[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?|\.(inf|Inf|INF))$|\.(nan|NaN|NAN)$"
    ),
}


def read_declared(key: str, what: str, name: str, *folders: Path, do: str = "") -> Any:
    """The content of NAME.yaml in the first of the folders that has it, or of the yaml at a path: plain mappings with
    texts as keys, lists, texts and numbers. Raises UserError where there is none, it is no yaml, or a key stands in it
    twice.

    key: the setting that names it, for messages.
    what: what it is, "schema" say, for messages.
    name: a name without its suffix, or a path; what has a slash or ends in .yaml or .yml is a path.
    folders: where a name is looked for, in this order.
    do: what the user can do where there is none, a sentence.
    """
    if not isinstance(name, str) or not name.strip():
        raise invalid(key, "null" if name is None else name, f"the name of a {what}, or the path of one")
    is_path = "/" in name or "\\" in name or name.endswith((".yaml", ".yml"))
    places = [Path(name).expanduser()] if is_path else [folder / f"{name}.yaml" for folder in folders]
    place = next((place for place in places if place.is_file()), None)
    if place is None:
        there = sorted({path.stem for folder in folders for path in folder.glob("*.yaml")})
        also = "" if is_path or not there else f"{', '.join(there)}, or "
        raise invalid(
            key, name, f"{also}the path of a yaml file that is there", f"{do} {did_you_mean(name, there)}".strip()
        )
    import yaml

    try:
        return _plain(yaml.load(place.read_text(encoding="utf-8"), _once_loader()))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" (line {mark.line + 1})" if mark is not None else ""
        raise invalid(key, name, f"a file that can be read as yaml, every key once{where}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise invalid(key, name, f"a text file in UTF-8 ({type(error).__name__})") from None


def _plain(part: Any) -> Any:
    """Dates as texts, so that settings can hold them; keys as texts."""
    if isinstance(part, Mapping):
        return {str(key): _plain(value) for key, value in part.items()}
    if isinstance(part, list):
        return [_plain(value) for value in part]
    return part.isoformat() if isinstance(part, datetime.date) else part


def _once_loader() -> Any:
    """Yaml's safe loader takes the last of two keys with one name: two columns would be one. And it takes 012 and 12:30
    for the numbers 10 and 750: here they are texts, and only what is written in the usual way is a number.
    """
    import yaml

    class Loader(yaml.SafeLoader):
        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            keys = [key.value for key, _ in node.value]
            for at, (key, _) in enumerate(node.value):
                if key.value in keys[:at]:
                    raise yaml.constructor.ConstructorError(None, None, "a key twice", key.start_mark)
            return super().construct_mapping(node, deep)

    Loader.yaml_implicit_resolvers = {
        first: [(tag, NUMBERS.get(tag, form)) for tag, form in forms]
        for first, forms in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    return Loader
