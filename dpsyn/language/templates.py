"""Prompts of models that draw: templates for all labels, or for each, filled with the label's columns."""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dpsyn.errors import invalid
from dpsyn.population import U64, Label

Templates = Mapping[str | None, tuple[str, ...]]
"""By the label, its values joined with ' | ' ('all' without one); under None those for any label."""


def by_label(key: str, prompts: Any) -> Templates:
    """Templates of each label, or of all. Raises UserError for what are no templates.

    key: the setting.
    prompts: a template, a list, or either by the names of labels.
    """
    named = {str(name): value for name, value in prompts.items()} if isinstance(prompts, Mapping) else {None: prompts}
    if not named:
        raise invalid(key, prompts, "templates")
    return {name: several(key if name is None else f"{key}.{name}", value) for name, value in named.items()}


def several(key: str, value: Any) -> tuple[str, ...]:
    """The templates of one, or of a list. Raises UserError for what are none.

    key: the setting.
    value: a template, or a list.
    """
    templates = (value,) if isinstance(value, str) else tuple(value) if isinstance(value, Sequence) else ()
    if not templates or not all(isinstance(template, str) and template.strip() for template in templates):
        raise invalid(key, "null" if value is None else value, "a template or a list of templates")
    for template in templates:
        try:
            list(string.Formatter().parse(template))
        except ValueError:
            raise invalid(key, template, "a template such as 'a photo of a {digit}'") from None
    return templates


def filled(key: str, template: str, values: Mapping[str, Any]) -> str:
    """The template with the values in it. Raises UserError for a column that the values lack.

    key: the setting.
    template: with a name of a column in braces.
    values: by column.
    """
    try:
        return template.format(**values)
    except (LookupError, AttributeError, TypeError, ValueError):
        columns = ", ".join(values) or "it has none"
        raise invalid(key, template, f"a template over the label's columns ({columns})") from None


def drawn(templates: Templates, labels: Sequence[Label], seeds: U64) -> np.ndarray:
    """object of str [n]: of each row one template of its label, by its seed, filled.

    templates: as `by_label` gives them.
    labels: [n].
    seeds: uint64 [n].

    Raises UserError for a label without templates, and for a template without its column.
    """
    prompts = np.empty(len(labels), object)
    for i, (label, seed) in enumerate(zip(labels, seeds, strict=True)):
        name = " | ".join(label.values()) or "all"
        mine = templates.get(name) or templates.get(None)
        if mine is None:
            raise invalid("api.prompts", ", ".join(map(str, templates)), f"templates for the label {name} too")
        template = mine[np.random.default_rng([int(seed), 0]).integers(len(mine))]
        prompts[i] = filled("api.prompts", template, label)
    return prompts
