"""`dpsyn completion`: every verb with every flag, and bash completes by it."""

import re
import shlex
import shutil
import subprocess
import sys

import pytest

from dpsyn import cli
from dpsyn.arguments import flags, parsers
from dpsyn.build import config_folder
from dpsyn.completion import overrides


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("dpsyn ver", ["verify"]),
        ("dpsyn run +experiment=dig", ["digits"]),
        ("dpsyn plan schedule=ba", ["balanced"]),
        ("dpsyn export --f", ["--format"]),
        ("dpsyn list --j", ["--json"]),
    ],
)
def test_bash_completes_verbs_groups_and_flags(line, expected, capsys):
    assert cli.main(["completion", "bash"]) == 0
    script = capsys.readouterr().out
    words = line.split(" ")
    setup = f"COMP_LINE='{line}'; COMP_POINT={len(line)}; COMP_WORDS=({' '.join(words)}); COMP_CWORD={len(words) - 1}"
    told = f"{script}\n{setup}\n_dpsyn\nprintf '%s\\n' \"${{COMPREPLY[@]}}\""
    ended = subprocess.run(["bash", "-c", told], capture_output=True, text=True, check=True)
    assert ended.stdout.split() == expected


def test_every_verb_and_every_flag_is_there(capsys):
    for shell in ("zsh", "fish"):
        assert cli.main(["completion", shell]) == 0
        said = capsys.readouterr().out
        assert all(verb in said for verb in flags())
    verbs = set(re.findall(r"^  dpsyn (\w+)", cli.HELP, re.MULTILINE))
    assert verbs == set(flags())
    assert cli.main(["completion", "tcsh"]) == 2
    assert len([word for word in overrides(config_folder()) if word.startswith("+experiment=")]) > 30


@pytest.mark.parametrize("verb", parsers())
def test_help_of_a_verb_says_what_it_does_what_each_flag_is_and_shows_commands_that_it_takes(verb, capsys):
    parser = parsers()[verb]
    if verb != "run":  # Hydra adds the parts and keys, in a process of its own
        try:
            assert cli.main([verb, "--help"]) == 0
        except SystemExit as ended:
            assert ended.code == 0
        said = capsys.readouterr().out
        assert parser.description in said and all(flag in said for flag in flags()[verb] if flag.startswith("--"))
    assert all(action.help for action in parser._actions)
    examples = [shlex.split(line, comments=True) for line in parser.epilog.splitlines()[1:]]
    assert examples
    for dpsyn, name, *given in examples:
        if dpsyn == "dpsyn":
            assert name == verb
            given = given[: given.index(">")] if ">" in given else given
            found, unknown = parser.parse_known_intermixed_args(given)
            assert not [text for text in unknown if text.startswith("-")] and vars(found)


def test_a_reader_that_stops_early_is_no_error():
    command = f"{sys.executable} -m dpsyn plan +experiment=smoke --json | head -1"
    ended = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, check=False)
    assert ended.returncode == 0 and ended.stderr == "", ended.stderr
