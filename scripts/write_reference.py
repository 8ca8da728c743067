"""Writes docs/reference from the code: verbs, settings, declarations, files, Python, messages.

scripts/write_reference.py            # writes; tests/test_reference.py compares
"""

from __future__ import annotations

import argparse
import ast
import importlib
import inspect
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dpsyn.errors import one_of

ROOT = Path(__file__).resolve().parents[1]
HEAD = "<!-- Written by scripts/write_reference.py: change the code that it is made from. -->\n"
GROUPS = {
    "data": "What the private rows are, and what is declared of them.",
    "api": "What makes candidates and varies them.",
    "embedding": "What says which candidate is nearest to a record.",
    "schedule": "Which noisy questions are asked, and what rows are made of the answers.",
    "privacy": "What is promised.",
    "metric": "What is measured of the data. Private, unless the data that it reads are declared public.",
    "runtime": "How and where it works, not what: none of it changes what a run is.",
}
STATEMENT = {  # keys of privacy.json
    "format": "of this file",
    "status": "DP; INCOMPLETE: releases are still to come; WEAK: epsilon over 10; NOT PRIVATE, INSECURE NOISE: nothing is promised",
    "epsilon": "of all declared charges and lost draws together, rounded up; null: nothing is promised",
    "delta": "of the same promise",
    "unit": "who is protected: record, or user, that is all rows with one value of the unit column",
    "neighbours": "how data sets differ that cannot be told apart: add_remove or replace",
    "covers": "what the promise is about",
    "charges": "a charge for each declared release, with the sha256 of its receipt, null where it is not made yet",
    "lost_draws": "noisy draws whose results a crash took; each is charged",
    "lost_charges": "their charges",
    "epsilon_declared_schedule": "epsilon without the lost draws",
    "dp_event": "the run as an event of dp-accounting, from which anybody computes epsilon",
    "mechanism": "where the noise comes from",
    "accountant": "what computed epsilon: method, version, and an exact convolution beside it",
    "record_domain": "of which data sets the promise is",
    "assumed_public": "all settings: what enters the release without noise",
    "records": "how many there are, as declared; null: not declared",
    "joint": "all runs that are known on the same data, together: data_id, runs, epsilon, delta",
    "limits": "remarks on a weak promise, a line each",
    "statement": "the promise, its conditions and what it does not cover, in sentences",
    "files": "sha256 of every other released file, by name",
    "sha256": "of this file without this key",
}
EVALUATION = {  # keys of evaluation.json
    "format": "of this file",
    "of": "which records were judged: held out, or those that voted",
    "judge": "a digest of what judged them",
    "judged": "which synthetic rows: how many, and the sha256 of their file",
    "numbers": "name, what it is, value, low and high (95 %, with sampling), noise_low and noise_high (95 %, by noise alone)",
    "confusion": "labels; counts, noisy: a row a true label, a column what a classifier says; deviation of the noise",
    "distances": "noisy counts of records by the distance to the nearest synthetic sample; ends of the bins",
    "columns": "of a table: shares of each bar among synthetic and held-out rows, band, total variation with its interval",
}
PLACES = {  # files of a run
    "release/README.md": "the card: what it is, for people and for `datasets`",
    "release/report.html": "a page to look at",
    "release/privacy.json": "the statement, below",
    "release/config.yaml": "all settings, without places, addresses and keys",
    "release/synthetic.parquet": "the synthetic data",
    "release/iterations/NNN/samples.parquet": "the population of an iteration, and SHA256SUMS beside it",
    "release/votes/NNN.parquet": "the receipt of a release, below",
    "release/marginals.parquet": "with votes in cells: columns, cell in words, noisy count, deviation",
    "release/evaluation.json": "what was measured under differential privacy, below",
    "release/metrics.jsonl": "vital signs of each iteration, and metrics on data that are declared public",
    "release/schema.yaml": "of schedule=discover: the schema with the values that were found",
    "release/samples.png, samples.txt": "some of the samples, to look at",
    "release/croissant.json": "the same for programs, Croissant 1.0",
    "release/deployment.yaml": "a record for OpenDP's registry of deployments",
    "private/config.yaml": "what the run is, with places",
    "private/log": "what happened when",
    "private/refused.jsonl, adjusted.json": "rows that cast no vote, and cells that were read as other values",
    "private/metrics.jsonl": "metrics on real data",
    "private/report.html": "`dpsyn report --private`",
    "private/intents, pending": "draws of noise that were begun, and receipts on their way",
    "cost.json": "what asking an endpoint took; for its owner",
}
PYTHON = ("run", "plan", "open", "Run", "Synthetic")
CHECKS = ("flag", "text_or_null", "name_or_null", "choice", "whole", "number", "side_lengths")


def main(given: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--to", type=Path, default=ROOT / "docs/reference", metavar="DIR")
    chosen = parser.parse_args(given)
    chosen.to.mkdir(parents=True, exist_ok=True)
    written = pages()
    for path in chosen.to.glob("*.md"):
        if path.name not in written:
            path.unlink()
    for name, text in written.items():
        (chosen.to / name).write_text(text, encoding="utf-8")
    print(f"{chosen.to}: {len(written)} pages")
    return 0


def pages() -> dict[str, str]:
    """Name to content, of all pages."""
    found = {"commands.md": commands(), "settings.md": settings()}
    found |= {f"{group}.md": parts(group, what) for group, what in GROUPS.items()}
    found |= {"declarations.md": declarations(), "files.md": files(), "python.md": python(), "messages.md": messages()}
    return {name: f"{HEAD}\n{text.strip()}\n" for name, text in found.items()}


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"

    return "\n".join([line(head), "|" + "---|" * len(head), *map(line, rows)])


def code(text: str) -> str:
    """As it is written, in a table too."""
    return f"`` {text} ``" if "`" in text else f"`{text}`"


def fenced(text: str, language: str = "text") -> str:
    return f"```{language}\n{text.rstrip()}\n```"


def commands() -> str:
    from dpsyn.arguments import parsers

    told = ["# Commands", "Exit status: 0 done; 1 something does not agree or is below a bound; 2 something that you can fix, "
            "in one line; 130 interrupted, and the same command goes on."]  # fmt: skip
    for verb, parser in parsers().items():
        rows = []
        for action in parser._actions:
            value = "" if action.nargs == 0 else str(action.metavar or action.dest.upper())
            flag = ", ".join(action.option_strings)
            note = " (required)" if action.required and flag else ""
            if flag != "-h, --help":
                rows.append((code(f"{flag} {value}".strip()), f"{action.help}{note}"))
        examples = textwrap.dedent("\n".join((parser.epilog or "").splitlines()[1:]))
        told += [f"## dpsyn {verb}", _prose(parser.description or ""), table(("", ""), rows), fenced(examples)]
    return "\n\n".join(told)


def settings() -> str:
    path = ROOT / "configs/config.yaml"
    text = path.read_text(encoding="utf-8")
    own = re.sub(r"^(defaults|hydra):.*?(?=^\S|\Z)", "", text, flags=re.MULTILINE | re.DOTALL)
    experiments = []
    for each in sorted((ROOT / "configs/experiment").glob("*.yaml")):
        comment = [line[2:] for line in each.read_text(encoding="utf-8").splitlines()[1:] if line.startswith("# ")]
        experiments.append((code(f"+experiment={each.stem}"), comment[0] if comment else ""))
    told = [
        "# Settings of a run",
        "What belongs to no part. `dpsyn run --cfg job` with your arguments shows all keys and values, those of its parts "
        "too; their own pages: " + ", ".join(f"[{group}]({group}.md)" for group in GROUPS) + ".",
        table(("key", "default", ""), [(code(k), code(v) if v else "", c) for k, v, c in keys(own, "")]),
        "## Experiments",
        "Settings for a purpose. What they promise and measured: [experiments](../experiments.md).",
        table(("", ""), experiments),
    ]
    return "\n\n".join(told)


def parts(group: str, what: str) -> str:
    told, shown_before = [f"# {group}", what], set[str]()
    if group in ("api", "embedding", "metric", "runtime"):
        told.append("What each is for: [parts](../parts.md).")
    for path in sorted((ROOT / "configs" / group).glob("*.yaml")):
        text = path.read_text(encoding="utf-8")
        head = [line[1:].removeprefix(" ") for line in text.splitlines() if line.startswith("#")]
        shown = [line for line in head if not line.startswith("  ") and not line.startswith("@package")]
        examples = [line.strip() for line in head if line.startswith("  ")]
        body = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
        told += [f"## {group}={path.stem}", _prose(" ".join(shown))]
        if examples:
            told.append(fenced("\n".join(examples)))
        bases = re.findall(r"^  - (\w+)$", body, re.MULTILINE)
        if bases := [each for each in bases if each != "_self_"]:
            told.append("All else as " + ", ".join(f"`{group}={base}`" for base in bases) + ".")
        body = re.sub(r"^defaults:.*?(?=^\S|\Z)", "", body, flags=re.MULTILINE | re.DOTALL)
        rows = [(code(key), code(value) if value else "", comment) for key, value, comment in keys(body, f"{group}.")]
        if rows:
            told.append(table(("key", "default", ""), rows))
        if (target := re.search(r"^_target_: (\S+)", body, re.MULTILINE)) and not bases:
            told.append(f"`{target[1]}`" + (", as above." if target[1] in shown_before else ":"))
            told += [] if target[1] in shown_before else [fenced(inspect.getdoc(_named(target[1])) or "")]
            shown_before.add(target[1])
    return "\n\n".join(told)


def keys(text: str, prefix: str) -> Iterator[tuple[str, str, str]]:
    """(key, value, comment) of a yaml of ours, in order; a comment goes on where lines of its own follow."""
    above: list[tuple[int, str]] = []
    found: list[list[str]] = []
    for line in text.splitlines():
        if match := re.match(r"^( *)([\w-]+):(?: +(.*?))??(?: +# ?(.*))?$", line):
            depth, name, value = len(match[1]), match[2], (match[3] or "").strip()
            above = [pair for pair in above if pair[0] < depth]
            whole = ".".join([*(each for _, each in above), name])
            above.append((depth, name))
            if name not in ("_target_", "_partial_"):
                found.append([f"{prefix}{whole}", value, match[4] or ""])
        elif (match := re.match(r"^ +# ?(.*)$", line)) and found:
            found[-1][2] += f" {match[1].strip()}"
    for at, (key, value, comment) in enumerate(found):
        is_above = at + 1 < len(found) and found[at + 1][0].startswith(f"{key}.")
        if not is_above or comment:
            yield key, value, comment


def declarations() -> str:
    from dpsyn.language import prompts
    from dpsyn.tables import columns, constraints, schema

    told = ["# Schemas and prompts", "Yaml files of your own that declare something public."]
    named = {
        "Schema of a table": schema,
        "Columns": columns.Column,
        "Constraints": constraints,
        "Prompts": prompts,
        "Settings of prompts": prompts.Prompts,
    }
    for title, each in named.items():
        told += [f"## {title}", fenced(inspect.getdoc(each) or "")]
    told.append("Examples: `configs/schemas`, `configs/prompts`.")
    return "\n\n".join(told)


def files() -> str:
    from dpsyn.privacy.budget import Charge
    from dpsyn.privacy.ledger import Receipt
    from dpsyn.runs import storage

    told = ["# Files of a run", "`release/` may be published. Nothing else may."]
    told.append(table(("below the run's directory", ""), [(code(name), what) for name, what in PLACES.items()]))
    told += ["## privacy.json", table(("key", ""), [(code(key), what) for key, what in STATEMENT.items()])]
    told += ["A charge:", fenced(inspect.getdoc(Charge) or "")]
    told += ["## evaluation.json", table(("key", ""), [(code(key), what) for key, what in EVALUATION.items()])]
    told += [
        "## A receipt",
        "Parquet, one column `votes`; in its metadata, `dpsyn`:",
        fenced(inspect.getdoc(Receipt) or ""),
    ]
    told += ["## Samples", fenced(inspect.getdoc(storage) or "")]
    return "\n\n".join(told)


def python() -> str:
    import dpsyn.python as module

    told = [
        "# Python",
        "`import dpsyn`. A tour: [from Python](../how-to/python.md).",
        fenced(inspect.getdoc(module) or ""),
    ]
    tree = ast.parse(Path(inspect.getfile(module)).read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name in PYTHON:
            told += [f"## dpsyn.{node.name}" if isinstance(node, ast.FunctionDef) else f"## {node.name}"]
            told += [fenced(_signature(node), "python")] if isinstance(node, ast.FunctionDef) else []
            told += [fenced(ast.get_docstring(node) or "")]
            if isinstance(node, ast.ClassDef):
                each = [one for one in node.body if isinstance(one, ast.FunctionDef)]
                rows = [(code(_signature(one).removeprefix("def ").removesuffix(":")), _prose(ast.get_docstring(one) or ""))
                        for one in each]  # fmt: skip
                told.append(table(("", ""), rows))
    return "\n\n".join(told)


def _signature(node: ast.FunctionDef) -> str:
    given = ast.unparse(node.args).replace("self, ", "").replace("self", "")
    if any(ast.unparse(each) == "property" for each in node.decorator_list):
        return f"{node.name}: {ast.unparse(node.returns) if node.returns else ''}"
    return f"def {node.name}({given}) -> {ast.unparse(node.returns) if node.returns else 'None'}:"


def messages() -> str:
    rows: set[tuple[str, str, str]] = set()
    others: dict[str, list[str]] = {}
    for path in sorted((ROOT / "dpsyn").rglob("*.py")):
        if path.stem in ("validate", "errors", "__main__"):
            continue
        module = path.relative_to(ROOT).as_posix()
        name = module.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        reader = Reader(vars(importlib.import_module(name)))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and node.args:
                function = ast.unparse(node.func).rpartition(".")[2]
                if function in ("invalid", "missing") and len(node.args) >= 3:
                    do = reader.words(node.args[3]) if len(node.args) > 3 else reader.keyword(node, "do")
                    rows.add((reader.words(node.args[0]), reader.words(node.args[2]), do))
                elif function in CHECKS:
                    rows.add((reader.words(node.args[0]), reader.expected(function, node), reader.keyword(node, "do")))
                elif function in ("UserError", "Missing", "OutOfSpace"):
                    others.setdefault(module, []).append(reader.words(node.args[0]))
    told_of = {(key, what, do if do.strip(". ") else "") for key, what, do in rows if re.search(r"\w{3}", what)}
    said = sorted(told_of, key=lambda row: (not row[0].strip("."), row))
    told = [
        "# Messages",
        "What dpsyn refuses, and what it expects. A setting that is refused is one line, `KEY=VALUE: expected ...`, with "
        "what to do. `...` stands for what differs, also for a key that several parts have. dpsyn ends with status 2; nothing "
        "was spent, and the same command goes on once it is right.",
        "## Settings",
        table(("key", "expected", "what to do"), [(code(k), e, do) for k, e, do in said]),
        "## Others",
        "By the module that says so.",
    ]
    for module, texts in sorted(others.items()):
        if found := [text for text in dict.fromkeys(texts) if re.search(r"\w{3}", text)]:
            told += [f"### {module}", "\n".join(f"* {text}" for text in found)]
    return "\n\n".join(told)


class Reader:
    """Reads texts in the code of a module. known: what its names are."""

    def __init__(self, known: Mapping[str, Any]) -> None:
        self.known = known

    def words(self, node: ast.expr) -> str:
        """A text, what differs as dots; constants of the module, and lists of them, by their values."""
        if isinstance(node, ast.JoinedStr):
            parts = [part.value if isinstance(part, ast.FormattedValue) else part for part in node.values]
            return _prose("".join(str(p.value) if isinstance(p, ast.Constant) else self.words(p) for p in parts))
        if isinstance(node, ast.Constant):
            return _prose(str(node.value))
        if isinstance(node, ast.Tuple | ast.List) and all(isinstance(each, ast.Constant) for each in node.elts):
            return ", ".join(self.words(each) for each in node.elts)
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
            return f"{self.words(node.left)} {self.words(node.right)}"
        if isinstance(node, ast.IfExp):
            body, other = self.words(node.body), self.words(node.orelse)
            return f"{body} / {other}" if other else body
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "one_of" and self._value(node.args[0]) is not None:
            return one_of(self._value(node.args[0]))
        value = self._value(node)
        if isinstance(value, tuple | list):
            return one_of("null" if each is None else each for each in value)
        return "..." if value is None else _prose(str(value))

    def _value(self, node: ast.expr) -> Any:
        """Of a name in capitals, which is a constant; None of all else."""
        value = self.known.get(node.id) if isinstance(node, ast.Name) and node.id.isupper() else None
        return value if isinstance(value, str | int | float | tuple | list) else None

    def keyword(self, node: ast.Call, name: str) -> str:
        return next((self.words(each.value) for each in node.keywords if each.arg == name), "")

    def expected(self, name: str, node: ast.Call) -> str:
        """What a check of dpsyn/validate.py says that it expects."""
        given = [self.words(each) for each in node.args]
        optional = ", or null" if self.keyword(node, "optional") == "True" else ""
        if name == "flag":
            return "true or false"
        if name == "whole":
            least = given[2] if len(given) > 2 else self.keyword(node, "least") or "0"
            most = self.keyword(node, "most")
            return f"a whole number{f' from {least} to {most}' if most else f', {least} or more'}{optional}"
        if name == "side_lengths":
            return f"[height, width] px{optional}"
        return given[2] if len(given) > 2 else "a text, or null"


def _prose(text: str) -> str:
    return " ".join(text.split())


def _named(target: str) -> Any:
    module, name = target.rsplit(".", 1)
    return getattr(importlib.import_module(module), name)


def undescribed(name: str, known: Mapping[str, Any]) -> set[str]:
    """Keys of a document that this page does not tell of, and those that it tells of and are not there.

    name: 'privacy.json' or 'evaluation.json'.
    known: a document of that name.
    """
    return set({"privacy.json": STATEMENT, "evaluation.json": EVALUATION}[name]) ^ set(known)


if __name__ == "__main__":
    raise SystemExit(main())
