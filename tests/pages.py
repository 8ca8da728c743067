"""Pages of docs as their reader follows them: files that they show are written, commands given one after the other.

A block is fenced, or four spaces in. Its first line `# NAME.yaml` (py, csv, jsonl, txt) makes it a file. In a `console`
block `$ ` begins a command, and the lines below are what it prints, `...` anything; in other blocks a line that begins
with `dpsyn ` is a command. A `python` block that is no file runs in one namespace a page.
"""

import contextlib
import doctest
import io
import re
import runpy
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from dpsyn import cli

ROOT = Path(__file__).parents[1]
FILE = re.compile(r"# ([\w./-]+\.(?:py|yaml|csv|jsonl|txt))")
NOT_RUN = {  # first words, and why
    "scripts/": "sets a machine up, or runs these tests",
    "pip install": "the tests install nothing",
    "eval": "of the reader's shell; tests/test_completion.py runs it",
    "ray start": "machines of a cluster; tests/cluster starts some",
    "RAY_": "the same",
    "hf ": "an account of the hub",
    "dpsyn push": "sent to a stand-in for the hub in tests/report/test_loading.py",
    "vllm ": "a server of language models; tests/chat_server.py stands for it",
    "git ": "needs the network",
}
APART = {"-m", "--cfg", "--help"}  # Hydra's own main, in a process as a user starts it
SHELL = ("ls", "head", "cat", "mkdir", "rm", "cp", "wc", "tail", "mv")


@dataclass(frozen=True)
class Step:
    """kind: 'file', 'command' or 'python'. name: of a file. text: its content, or what is run. at: 'PAGE:LINE'.
    expected: what it prints, None where the page does not say."""

    kind: str
    text: str
    at: str
    name: str = ""
    expected: str | None = None


def steps(page):
    """Of a page below the root, in order."""
    found = []
    for language, lines, line in blocks((ROOT / page).read_text(encoding="utf-8")):
        at = f"{page}:{line}"
        if FILE.fullmatch(lines[0]):
            found += files(lines, at)
        elif language == "python":
            found.append(Step("python", "\n".join(lines), at))
        elif language in ("console", ""):
            found += commands(lines, at, language == "console")
    return found


def blocks(text):
    """(language, lines, number of the first line) of each block of code."""
    inside, language, taken, start, before = None, "", [], 0, ""
    for number, line in enumerate([*text.splitlines(), ""], 1):
        if inside == "fence":
            if line.startswith("```"):
                yield language, taken, start
                inside = None
            else:
                taken.append(line)
        elif line.startswith("```"):
            inside, language, taken, start = "fence", line[3:].split(" ")[0], [], number + 1
        elif inside == "indent":
            if line.startswith("    ") or not line.strip():
                taken.append(line[4:])
            if not line.startswith("    ") and (line.strip() or number > len(text.splitlines())):
                while taken and not taken[-1].strip():
                    taken.pop()
                yield "", taken, start
                inside = None
        elif line.startswith("    ") and not before.strip():
            inside, taken, start = "indent", [line[4:]], number
        before = line


def files(lines, at):
    """One or several of a block, each from its `# NAME` on; the rest of a block may be commands."""
    name, taken, found = "", [], []
    for text in [*lines, ""]:
        match = FILE.fullmatch(text)
        if match or text.startswith("dpsyn "):
            found += [Step("file", "\n".join(taken).strip() + "\n", at, name)] if name else []
            name, taken = match[1] if match else "", []
        elif name:
            taken.append(text)
    found += [Step("file", "\n".join(taken).strip() + "\n", at, name)] if name else []
    first = next((at for at, text in enumerate(lines) if text.startswith("dpsyn ")), len(lines))
    return found + commands(lines[first:], at, False)


def commands(lines, at, with_output):
    found, lines = [], list(lines)
    while lines:
        line = lines.pop(0)
        first = ("$ ",) if with_output else ("dpsyn ", *NOT_RUN)
        if not line.startswith(first):
            assert not with_output, f"{at}: {line}: expected a command, $ ..."
            continue
        text = line[2:] if with_output else line
        while text.endswith("\\"):
            text = text[:-1] + lines.pop(0).removeprefix("> ")
        printed = []
        while with_output and lines and not lines[0].startswith("$ "):
            printed.append(lines.pop(0))
        found.append(Step("command", text, at, expected="\n".join(printed).strip() or None))
    return found


def words(step):
    return shlex.split(step.text, comments=True)


def reason(step):
    """Why a command is not run; '' where it is."""
    return next((why for first, why in NOT_RUN.items() if step.text.startswith(first)), "")


def carry_out(step, namespace, smaller=()):
    """Does what a step says, and compares what it prints.

    smaller: overrides that a command gets besides, so that it takes seconds.
    """
    if step.kind == "file":
        Path(step.name).parent.mkdir(parents=True, exist_ok=True)
        Path(step.name).write_text(step.text, encoding="utf-8")
        return
    if step.kind == "python":
        exec(compile(step.text, step.at, "exec"), namespace)
        return
    code, out = executed([*words(step), *smaller], step)
    is_error = step.expected is not None and re.search(r"^(dpsyn: |FAULT|INCOMPLETE)", step.expected, re.MULTILINE)
    assert (code == 0) == (not is_error), f"{step.at}: {step.text}\nended with {code}\n{out}"
    if step.expected is not None:
        flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
        pattern = re.sub(r"(?:^|\n)\.\.\.(?:\n|$)", "...", step.expected)  # a line of dots: any number of lines
        same = doctest.OutputChecker().check_output(pattern + "\n", out, flags)
        assert same, f"{step.at}: {step.text}\nthe page says\n{step.expected}\nit prints\n{out}"


def executed(given, step):
    """(exit status, all that is printed) of a command of dpsyn, of a script, or of a few of the shell."""
    program, *rest = given
    to = None
    if ">" in rest:
        to, rest = rest[rest.index(">") + 1], [*rest[: rest.index(">")], *rest[rest.index(">") + 2 :]]
    out, code = io.StringIO(), 0
    errors = io.StringIO() if to else out
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
        if program == "dpsyn" and APART & set(rest):
            command = [sys.executable, "-m", "dpsyn", *rest]
            ended = subprocess.run(command, capture_output=True, text=True, check=False)
            code = ended.returncode
            print(ended.stdout, ended.stderr, sep="", end="")
        elif program == "dpsyn":
            try:
                code = cli.main(rest)
            except SystemExit as ended:
                code = ended.code or 0
        elif program == "python":
            runpy.run_path(rest[0], run_name="__main__")
        else:
            assert program in SHELL, f"{step.at}: {step.text}: say in tests/pages.py why it is not run"
            ended = subprocess.run([program, *rest], capture_output=True, text=True, check=False)
            code = ended.returncode
            print(ended.stdout + ended.stderr, end="")
    if to:
        Path(to).write_text(out.getvalue(), encoding="utf-8")
        return code, errors.getvalue()
    return code, out.getvalue()
