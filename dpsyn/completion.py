"""`dpsyn completion SHELL`: a script by which a shell completes verbs, groups with their options, and flags."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from dpsyn.errors import invalid, one_of

SHELLS = ("bash", "zsh", "fish")
BASH = """\
# eval "$(dpsyn completion bash)", in ~/.bashrc
_dpsyn() {{
  local line="${{COMP_LINE:0:COMP_POINT}}" cur words reply
  cur="${{line##* }}"
  if [ "$COMP_CWORD" -le 1 ]; then words="{verbs}"; else
    case "${{COMP_WORDS[1]}}" in
{cases}
      *) words="" ;;
    esac
  fi
  COMPREPLY=()
  for reply in $(compgen -W "$words" -- "$cur"); do
    COMPREPLY+=("${{reply#"${{cur%"${{cur##*=}}"}}"}}")  # bash takes = for the end of a word
  done
  [ -n "$COMPREPLY" ] || COMPREPLY=($(compgen -f -- "${{cur##*=}}"))
}}
complete -o nospace -F _dpsyn dpsyn
"""
ZSH = """\
# eval "$(dpsyn completion zsh)", in ~/.zshrc, after compinit
_dpsyn() {{
  if (( CURRENT == 2 )); then compadd -- {verbs}; return; fi
  case $words[2] in
{cases}
  esac
  _files
}}
compdef _dpsyn dpsyn
"""
FISH = """\
# dpsyn completion fish > ~/.config/fish/completions/dpsyn.fish
complete -c dpsyn -n __fish_use_subcommand -f -a "{verbs}"
{cases}
"""


def script(shell: str, words: Mapping[str, Sequence[str]]) -> str:
    """
    shell: one of SHELLS.
    words: what may follow each verb. Raises UserError for another shell.
    """
    if shell not in SHELLS:
        raise invalid("SHELL", shell, one_of(SHELLS))
    verbs = " ".join(words)
    if shell == "bash":
        lines = [f'      {verb}) words="{" ".join(found)}" ;;' for verb, found in words.items()]
        return BASH.format(verbs=verbs, cases="\n".join(lines))
    if shell == "zsh":
        lines = [f"    {verb}) compadd -- {' '.join(found)} ;;" for verb, found in words.items() if found]
        return ZSH.format(verbs=verbs, cases="\n".join(lines))
    lines = [
        f'complete -c dpsyn -n "__fish_seen_subcommand_from {verb}" -a "{" ".join(found)}"'
        for verb, found in words.items()
        if found
    ]
    return FISH.format(verbs=verbs, cases="\n".join(lines))


def overrides(configs: Path) -> list[str]:
    """What `run` takes: experiments, and groups with their options."""
    found = [f"+experiment={path.stem}" for path in sorted((configs / "experiment").glob("*.yaml"))]
    groups = ("data", "api", "embedding", "privacy", "schedule", "metric", "runtime")
    return found + [f"{group}={path.stem}" for group in groups for path in sorted((configs / group).glob("*.yaml"))]
