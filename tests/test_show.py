"""What a run shows while it works: on a terminal, and where its output is kept."""

import io
import re

from rich.console import Console

from dpsyn.show import Screen


def shown(is_terminal):
    """What a screen prints of a public and a private stage."""
    out = io.StringIO()
    screen = Screen(Console(file=out, force_terminal=is_terminal, width=100), {"run": "here"}, 1)
    with screen.shown():
        with screen.phase("embedding", 800) as advance:
            advance(123)
            if screen.live is not None:
                screen.live.refresh()
        with screen.private_phase("release 1: private records vote"):
            if screen.live is not None:
                screen.live.refresh()
    return out.getvalue()


def test_output_that_is_kept_has_a_line_a_stage_and_no_times():
    assert shown(is_terminal=False).splitlines() == [
        "run: here",
        "embedding: 800 rows ...",
        "release 1: private records vote ...",
    ]


def test_on_a_terminal_a_public_stage_shows_its_progress_and_a_private_one_only_how_long_it_takes():
    lines = [line for line in shown(is_terminal=True).splitlines() if "embedding" in line or "vote" in line]
    assert any("embedding" in line and "123/800" in line for line in lines)
    private = [line.split("no progress is shown)")[1] for line in lines if "private records vote" in line]
    assert private and all(re.fullmatch(r"\W*\d:\d\d:\d\d\W*", re.sub(r"\x1b\[[\d;]*m", "", text)) for text in private)
