"""The verbs. Heavy imports stand inside them, so that `dpsyn --help` is there at once."""

from __future__ import annotations

import atexit
import errno
import gc
import io
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from dpsyn import __version__
from dpsyn.arguments import flags, parsers
from dpsyn.errors import UserError, invalid
from dpsyn.threads import wait_passively

HELP = """\
dpsyn: differentially private synthetic data by Private Evolution, without training anything.

  dpsyn init FILE|FOLDER --records N ...          a commented yaml for data of your own, and how to go on
  dpsyn run [+experiment=NAME] [KEY=VALUE ...]    run; the same command goes on with what was interrupted
  dpsyn run -m ... KEY=A,B,C                      a sweep (Hydra multirun)
  dpsyn plan [the same arguments]                 what it would cost: privacy, calls, disk; reads and writes nothing
  dpsyn check [the same arguments]                what a run would make of your rows; spends nothing
  dpsyn expand RUN --rows N                       more rows from a finished run; costs no privacy
  dpsyn report RUN                                one HTML page to look at, safe to publish; or --private
  dpsyn evaluate RUN ... [metric=NAME]            finished runs measured and compared; --epsilon E: a number to publish
  dpsyn export RUN --to DIR --format csv          its data as csv, jsonl, parquet, imagefolder or npz
  dpsyn push RUN OWNER/NAME                       its release to the Hugging Face hub; refuses what is not private
  dpsyn schema FILE > schema.yaml                 drafts the schema of a table from a codebook or a public sample
  dpsyn list [RUN or FOLDER ...]                  runs side by side: state, epsilon, rows, public metrics; --json
  dpsyn verify RUN                                recompute epsilon from the receipts by exact convolution
  dpsyn budget                                    what was spent on each data set
  dpsyn completion bash|zsh|fish                  a script by which the shell completes all this
  dpsyn --version

`dpsyn VERB --help` tells more of each. `dpsyn run` alone draws the digits that ship with it; `dpsyn run --help` lists
experiments and parts, `dpsyn run --cfg job` all keys, and --config-dir DIR adds configs of your own.
"""
UNUSABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.ELOOP)
PASSED_TO_HYDRA = ("--help", "-h", "--hydra-help", "--cfg", "-c", "--info", "-i", "--shell-completion", "-sc")


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 done, 1 something is wrong inside, 2 something that the user can fix, 130 interrupted."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal without UTF-8 stops nothing
    wait_passively()
    atexit.register(gc.freeze)  # else Python looks at its end for garbage among all of torch: 0.7 s
    given = list(sys.argv[1:] if arguments is None else arguments)
    verbs = {
        "init": init,
        "run": run,
        "plan": plan,
        "check": check,
        "expand": expand,
        "report": report,
        "evaluate": evaluate,
        "export": export,
        "push": push,
        "schema": schema,
        "list": list_runs,
        "verify": verify,
        "budget": budget,
        "completion": completion,
    }
    if not given or given[0] in ("--help", "-h", "help"):
        print(HELP, end="")
        return 0
    if given[0] == "--version":
        print(f"dpsyn {__version__}")
        return 0
    if given[0] not in verbs:
        print(f"dpsyn: {given[0]}: unknown verb. Expected {', '.join(verbs)}.", file=sys.stderr)
        return 2
    try:
        return verbs[given[0]](given[1:])
    except UserError as error:
        print("dpsyn:", " ".join(str(error).splitlines()), file=sys.stderr)
        return 2
    except BrokenPipeError:  # who reads has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.errno not in UNUSABLE or error.filename is None:
            raise
        print(
            f"dpsyn: {error.filename}: {error.strerror}. Name another place, or change its permissions.",
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt as stopped:
        there = f" {stopped}" if str(stopped) else ""
        print(f"dpsyn: interrupted.{there} The same command goes on where it stopped.", file=sys.stderr)
        return 130


def run(given: list[str]) -> int:
    """`dpsyn run`: one run, or a sweep."""
    flags, folder, overrides = _split(given)
    from dpsyn import compose

    sweep = bool({"-m", "--multirun"} & set(flags))
    overrides = compose.with_default(compose.readable(overrides, sweep))
    if {"--help", "-h"} & set(flags):
        _show_help("run")
        print(flush=True)
    if any(flag in PASSED_TO_HYDRA for flag in flags):
        compose.check_launch(overrides, folder)
        return _hydra(flags, folder, overrides, lambda config: None)
    if sweep:
        return _sweep(flags, folder, overrides)
    _carry_out(compose.settings(overrides, folder), ())
    return 0


def init(given: list[str]) -> int:
    """`dpsyn init FILE|FOLDER`: a yaml and the commands to go on with; no private row is read."""
    chosen = parsers()["init"].parse_args(given)
    from dpsyn.starting import TEXTS, Wanted, begin, kind_of

    if not chosen.place.exists():
        raise UserError(f"{chosen.place}: expected a file or folder that is there.")
    is_text = chosen.text or chosen.model or chosen.local
    is_texts = is_text and chosen.place.is_file() and chosen.sample is None  # a sample is one of a table
    kind = chosen.kind or (TEXTS if is_texts else kind_of(chosen.place))
    if chosen.records is None:
        chosen.records = _asked_for_records()
    labels = {
        name: [v for v in values.split(",") if v] for name, _, values in (t.partition("=") for t in chosen.labels)
    }
    name = chosen.name or re.sub(r"\W+", "_", chosen.place.name.split(".")[0]).strip("_") or "mine"
    public = (chosen.sample, chosen.pool, chosen.model, chosen.local, chosen.text)
    wanted = Wanted(chosen.place, kind, name, chosen.records, chosen.epsilon, *public,
                    labels, chosen.description, chosen.encoding)  # fmt: skip
    begun = begin(wanted, chosen.to)
    for path in begun.written:
        print(f"written: {path}")
    for remark in begun.remarks:
        print(remark)
    print(f"a release will publish the name {name} (--name), and the labels and columns that are declared there")
    print("read it, then:", *(f"  {command}" for command in begun.commands), sep="\n")
    return 0


def _asked_for_records() -> int:
    """Asks where somebody can answer. Raises UserError elsewhere."""
    if not sys.stdin.isatty():
        raise UserError("--records: expected how many records there are, about. It is declared and published.")
    try:
        return int(input("about how many records? (declared and published, never counted) ").replace(",", ""))
    except ValueError:
        raise UserError("--records: expected a whole number.") from None


def plan(given: list[str]) -> int:
    """`dpsyn plan`: reads no private row, loads no model, writes no file."""
    epsilons, rest = _taken("--epsilon", [text for text in given if text != "--json"])
    flags, folder, overrides = _split(rest)
    if {"--help", "-h"} & set(flags):
        return _show_help("plan")
    from dpsyn import compose
    from dpsyn.build import build
    from dpsyn.planning import compared, planned, show_compared, show_joint_epsilon, show_plan

    sweep = bool({"-m", "--multirun"} & set(flags))
    if epsilons is not None:
        if sweep:
            raise invalid("--epsilon", epsilons, "no -m: it plans one run several times, and sums nothing up")
        found = []
        for epsilon in epsilons.split(","):
            texts = compose.with_default(compose.readable([*overrides, f"privacy.epsilon={epsilon}"], sweep=False))
            found.append(compared(build(compose.settings(texts, folder))))
        _print_json(found) if "--json" in given else show_compared(found)
        return 0
    overrides = compose.with_default(compose.readable(overrides, sweep))
    members = list(compose.members(overrides, folder)) if sweep else [(overrides, [])]
    jobs = [build(compose.settings(texts, folder), swept) for texts, swept in members]
    if "--json" in given:
        _print_json([planned(job) for job in jobs] if sweep else planned(jobs[0]))
        return 0
    for job, (texts, _) in zip(jobs, members, strict=True):
        show_plan(job, texts)
    if sweep:
        show_joint_epsilon(jobs, read=False)
    return 0


def check(given: list[str]) -> int:
    """`dpsyn check`: reads the private rows and spends nothing; 1 where a run would be refused."""
    flags, folder, overrides = _split(given)
    if {"--help", "-h"} & set(flags):
        return _show_help("check")
    from dpsyn import compose
    from dpsyn.build import build
    from dpsyn.checking import show_check

    if {"-m", "--multirun"} & set(flags):
        raise UserError("-m: expected one run. `dpsyn check` reads the data of one.")
    given = compose.with_default(compose.readable(overrides, sweep=False))
    return 0 if show_check(build(compose.settings(given, folder))) else 1


def expand(given: list[str]) -> int:
    """`dpsyn expand RUN --rows N --labels COLUMN=VALUE --shares uniform`: the data and `private/` may be gone."""
    chosen = parsers()["expand"].parse_intermixed_args(given)
    from dpsyn import compose
    from dpsyn.expanding import expand_run
    from dpsyn.runs.directory import open_run

    job = compose.rebuilt(open_run(chosen.run), chosen.overrides)
    folder = expand_run(job, _screen({"run": str(chosen.run)}, 0), chosen.rows, chosen.labels, chosen.shares)
    print(f"{folder / 'synthetic.parquet'}: {chosen.rows} rows")
    return 0


def report(given: list[str]) -> int:
    """`dpsyn report RUN`: from `release/` alone; the data and `private/` may be gone."""
    chosen = parsers()["report"].parse_args(given)
    from dpsyn.report import write_private_report, write_report
    from dpsyn.runs.directory import open_run

    run = open_run(chosen.run, alone=not chosen.private)
    if not chosen.private:
        print(write_report(run))
        return 0
    from dpsyn.evaluating import beside_private

    screen = _screen({"run": str(chosen.run)}, 0)
    screen.console.stderr = True
    print(write_private_report(run, beside_private(run, screen)))
    return 0


def evaluate(given: list[str]) -> int:
    """`dpsyn evaluate RUN...`: 1 where a number is below `--fail-under`."""
    chosen = parsers()["evaluate"].parse_intermixed_args(given)
    overrides = [text for text in chosen.runs if "=" in text and not Path(text).is_dir()]
    places = [Path(text) for text in chosen.runs if text not in overrides]
    if not places:
        raise UserError("dpsyn evaluate: expected a run, or several.")
    least = dict(map(_bound, chosen.fail_under))
    from dpsyn import compose
    from dpsyn.evaluating import PRIVATE, as_mappings, as_text, check_measurable, fails, measure
    from dpsyn.runs.directory import open_run

    runs = [open_run(place) for place in places]
    jobs = [compose.rebuilt(run, overrides, measured=True, folder=chosen.config_dir) for run in runs]
    if chosen.epsilon is not None:
        if len(runs) > 1 or chosen.public or chosen.iteration is not None or least or chosen.json:
            raise invalid("--epsilon", chosen.epsilon, "one run, and no other flag")
        from dpsyn.execution import evaluate_run

        print(evaluate_run(jobs[0], _screen({"run": str(places[0])}, 0), chosen.epsilon))
        return 0
    screen = _screen({"run": ", ".join(map(str, places))}, 0)
    screen.console.stderr = True
    for job, run in zip(jobs, runs, strict=True):
        check_measurable(job, run, chosen.iteration, chosen.public)
    found = [measure(job, run, screen, chosen.iteration, chosen.public) for job, run in zip(jobs, runs, strict=True)]
    warning = [] if chosen.public else [PRIVATE]
    if chosen.json:
        import json

        print(*warning, sep="\n", end="\n" if warning else "", file=sys.stderr)
        print(json.dumps(as_mappings(found), indent=1))
    else:
        print(*warning, as_text(found), sep="\n", end="")
    for line in (failed := fails(found, least)):
        print(f"dpsyn: {line}", file=sys.stderr)
    return 1 if failed else 0


def _bound(text: str) -> tuple[str, float]:
    name, _, value = text.partition("=")
    try:
        return name, float(value)
    except ValueError:
        raise invalid("--fail-under", text, "NUMBER=VALUE, such as accuracy=0.9") from None


def export(given: list[str]) -> int:
    """`dpsyn export RUN --to DIR --format FORMAT`: the data and `private/` may be gone."""
    chosen = parsers()["export"].parse_args(given)
    from dpsyn.report import describe_export
    from dpsyn.runs.directory import open_run
    from dpsyn.runs.export import export as written

    run = open_run(chosen.run, alone=True)
    if not run.is_private and not chosen.not_private:
        do = "If it is to leave all the same, say --not-private."
        raise UserError(f"{chosen.run}: this run is NOT PRIVATE: its noise protects nobody. {do}")
    rows = written(run, chosen.to, chosen.format, chosen.iteration, chosen.all, describe_export, chosen.rows)
    print(f"{chosen.to}: {rows} rows")
    return 0


def push(given: list[str]) -> int:
    """`dpsyn push RUN OWNER/NAME`: the release, as it stands, once `dpsyn verify` agrees with it."""
    chosen = parsers()["push"].parse_args(given)
    from dpsyn.runs.directory import open_run
    from dpsyn.runs.push import push as sent

    print(sent(open_run(chosen.run, alone=True), chosen.repository, chosen.private))
    return 0


def schema(given: list[str]) -> int:
    """`dpsyn schema FILE`: a draft on standard output, to be edited by hand."""
    chosen = parsers()["schema"].parse_args(given)
    from dpsyn.tables.draft import WARNING, draft

    drafted = draft(chosen.file, chosen.delimiter, chosen.encoding)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8")  # whatever the terminal's: a schema is read as UTF-8
    print("dpsyn:", " ".join(WARNING.split()), file=sys.stderr)
    print(drafted, end="")
    return 0


def list_runs(given: list[str]) -> int:
    """`dpsyn list`: from what is released alone."""
    chosen = parsers()["list"].parse_args(given)
    from dpsyn.report.listing import as_json, as_text, listed

    lines = listed(chosen.places)
    print(as_json(lines) if chosen.json else as_text(lines), end="")
    return 0


def verify(given: list[str]) -> int:
    """`dpsyn verify RUN`: 0 when all agrees, 1 when something does not."""
    chosen = parsers()["verify"].parse_args(given)
    from dpsyn.runs.directory import open_run
    from dpsyn.runs.verification import verified

    report = verified(open_run(chosen.run, alone=True))
    if chosen.json:
        _print_json({"lines": report.lines, "agrees": report.agrees, "complete": report.complete})
    else:
        print("\n".join(report.lines))
    return 0 if report.agrees and report.complete else 1


def budget(given: list[str]) -> int:
    """`dpsyn budget`: what all runs of this user have spent, by data set."""
    chosen = parsers()["budget"].parse_args(given)
    from dpsyn.planning import show_budget, spent

    if chosen.json:
        _print_json(spent())
    else:
        show_budget()
    return 0


def completion(given: list[str]) -> int:
    """`dpsyn completion SHELL`."""
    chosen = parsers()["completion"].parse_args(given)
    from dpsyn.build import config_folder
    from dpsyn.completion import overrides, script

    composed = overrides(config_folder())
    words = {verb: [*known, *(composed if verb in ("run", "plan", "check") else [])] for verb, known in flags().items()}
    print(script(chosen.shell, words), end="")
    return 0


def _print_json(what: object) -> None:
    import json

    print(json.dumps(what, indent=1))


def _show_help(verb: str) -> int:
    print(parsers()[verb].format_help(), end="", flush=True)
    return 0


def _taken(flag: str, given: Sequence[str]) -> tuple[str | None, list[str]]:
    """The value of a flag, None where it is not given, and what else is given."""
    for at, text in enumerate(given):
        if text == flag or text.startswith(f"{flag}="):
            after = given[at + 1 : at + 2] if text == flag else [text.split("=", 1)[1]]
            if not after or not after[0]:
                raise UserError(f"{flag}: expected a value.")
            return after[0], [*given[:at], *given[at + (2 if text == flag else 1) :]]
    return None, list(given)


def _split(given: Sequence[str]) -> tuple[list[str], str | None, list[str]]:
    """-> flags, the user's config folder, overrides"""
    flags, overrides, folder = [], [], None
    rest = iter(given)
    for text in rest:
        if text in ("--config-dir", "-cd") or text.startswith("--config-dir="):
            folder = text.split("=", 1)[1] if "=" in text else next(rest, None)
            if folder is None:
                raise UserError("--config-dir: expected a folder.")
        elif text in ("--cfg", "-c", "--info", "-i", "--package", "-p"):
            flags += [text] + ([] if (value := next(rest, None)) is None else [value])
        elif text in (*PASSED_TO_HYDRA, "-m", "--multirun"):
            flags.append(text)
        elif text.startswith("-"):
            raise UserError(f"{text}: unknown flag. `dpsyn --help` shows all.")
        else:
            overrides.append(text)
    return flags, folder, overrides


def _carry_out(plain, swept: Sequence[str]) -> None:  # type: ignore[no-untyped-def]
    from dpsyn.build import build
    from dpsyn.execution import carry_out
    from dpsyn.job import check
    from dpsyn.planning import facts, show_end

    job = build(plain, swept)
    check(job)
    carry_out(job, _screen(facts(job), job.iterations))
    show_end(job)


def _sweep(flags: list[str], folder: str | None, overrides: list[str]) -> int:
    """All jobs are composed and checked, and their joint epsilon agreed to, before the first one starts."""
    from dpsyn import compose
    from dpsyn.build import build
    from dpsyn.planning import agree_to_joint_epsilon, withdraw_unbegun

    members = list(compose.members(overrides, folder))
    jobs = {tuple(sorted(texts)): (compose.settings(texts, folder), swept) for texts, swept in members}
    built = [build(plain, swept) for plain, swept in jobs.values()]
    compose.check_launch(overrides, folder)
    agree_to_joint_epsilon(built)

    def one(texts: list[str]) -> None:
        if tuple(sorted(texts)) not in jobs:
            do = "What it runs must be known beforehand: their joint epsilon is agreed to first."
            raise invalid(
                "hydra/sweeper", "...", "the basic sweeper, with all values on the command line (KEY=A,B,C)", do
            )
        _carry_out(*jobs[tuple(sorted(texts))])

    try:
        _hydra(flags, folder, overrides, one)
    finally:
        withdraw_unbegun(built)
    _compare(built, _sweep_folder(overrides))
    return 0


def _compare(jobs, folder: Path) -> None:  # type: ignore[no-untyped-def]
    """The end of a sweep: its runs side by side; numbers on real data in a file that is private."""
    from dpsyn.evaluating import as_text, recorded
    from dpsyn.files import write
    from dpsyn.report.listing import as_text as told
    from dpsyn.report.listing import listed
    from dpsyn.runs.directory import RunDirectory

    print(told(listed([job.root for job in jobs])), end="")
    found = [recorded(job, RunDirectory(job.root, job.privacy.is_private)) for job in jobs]
    if any(each.numbers for each in found):
        path = folder / "comparison.txt"
        write(path, as_text(found).encode(), private=True)
        print(f"side by side, with metrics on real data (private): {path}")


def _sweep_folder(overrides: list[str]) -> Path:
    own = [text.partition("=")[2] for text in overrides if text.startswith("hydra.sweep.dir=")]
    return Path(own[-1].strip("'\"") if own else "runs/.sweeps")


def _hydra(flags: list[str], folder: str | None, overrides: list[str], job) -> int:  # type: ignore[no-untyped-def]
    from dpsyn import compose
    from dpsyn.files import private_folder

    if {"-m", "--multirun"} & set(flags):
        private_folder(_sweep_folder(overrides))
    compose.launch([*flags, *(["--config-dir", folder] if folder else []), *overrides], job)
    return 0


def _screen(facts, iterations: int):  # type: ignore[no-untyped-def]
    from rich.console import Console

    from dpsyn.show import Screen

    return Screen(Console(), facts, iterations)
