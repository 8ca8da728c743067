"""Takes the reasoning of a language model out of its answer: no data set is to hold it.

Servers whose parser for a model's reasoning is off, or does not know the model, send it along with the text, in the
model's own marks: <think>, [THINK], <seed:think>, channels, and others.
"""

from __future__ import annotations

import re

NAME = (
    r"(?:[a-z_]+:)?(?P<begin>(?:begin_of|start)_)?(?P<end>end_(?:of_)?)?(?:inner_|internal_|my_)?"
    r"(?:think(?:ing|s)?|thoughts?|thought_process|thinking_process|reasoning(?:_content|_process)?|analysis"
    r"|reflections?|reflect|scratch_?pad|monologue|rationale|deliberation|cot|chain[_-]of[_-]thoughts?|planning"
    r"|(?:prefix|suffix))(?:_(?P<part>start|begin|end))?"
)
TAG = re.compile(
    rf"(?P<open>&lt;|[<\uff1c\[\u3010\u25c1\u27e8{{(])\|?(?P<slash>[/\u2215\\])?\|?{NAME}"
    r"(?:\s+[\w-]+\s*=[^<>]{0,80})?\s*(?P<alone>/)?\|?(?:&gt;|[>\uff1e\]\u3011\u25b7\u27e9})])"
    r"|(?P<gemma><\|channel>\s*\w*)|(?P<gemma_end><channel\|>)"
    r"|(?P<medgemma><unused94>\s*(?:thought)?)|(?P<medgemma_end><unused95>)",
    re.IGNORECASE,
)
OPENING = re.compile(r"[&<\uff1c\[\u3010\u25c1\u27e8{(]")  # a character that a tag begins with
CHANNEL = re.compile(r"(?:<\|start\|>\s*\w*\s*)?<\|channel\|>\s*(\w*)[^<]*(?:<\|constrain\|>[^<]*)?<\|message\|>")
CHANNEL_END = re.compile(r"<\|(?:end|return|call|start|channel)\|>")
BARE_MESSAGE = re.compile(r"\A\s*(?:<\|start\|>)?\s*(?:assistant)?\s*(?:analysis|commentary|final)?\s*<\|message\|>")
GLUED = re.compile(r"assistant(?:\s*\n\s*)?(?:commentary.*?assistant(?:\s*\n\s*)?)?final(?=[^a-z\s]|\s*\n)", re.DOTALL)
GLUED_START = re.compile(r"\A\s*(?:assistant)?(?:analysis|commentary)(?=[A-Z\"'(\[*<\d\u201c]|\s*\n)")
FINAL_START = re.compile(r"\A\s*(?:assistant)?final(?=[A-Z\"'(\[*\d\u201c])")
A_LINE = re.compile(r"\A\s*(?:thought|thoughts|think|thinking|reasoning)[ \t]*\n")  # marks that lost their brackets
OLLAMA = re.compile(r"\A\s*Thinking\.\.\.\s*\n.*?\n\s*\.\.\.\s*done thinking\.?\s*\n", re.DOTALL)
GRANITE = re.compile(
    r"\A\s*Here(?:'s| is) my thought process:.*?Here(?:'s| is) my response:", re.DOTALL | re.IGNORECASE
)
OPENED = re.compile(r"\A\s*(?:Thinking\.\.\.\s*\n|Here(?:'s| is) my thought process:)", re.IGNORECASE)
ALOUD = re.compile(  # without any marks: how models begin to think about who asks
    r"\A\s*(?:(?:okay|ok|alright|hmm+|right|so|well|got it|let me see|first|now)[,.!]?\s+){1,3}"
    r"(?:so\s*,?\s+)?(?:let's see[.,]?\s+)?the user(?:'s| is| wants| asks| asked| has| gave| needs| provided| would)\b"
    r"|\A\s*the user (?:wants|asked|asks|is asking|needs|would like) me to\b",
    re.IGNORECASE,
)
ANSWER = r"answer|final_answer|final|output|response|solution|conclusion"
WRAPPED = re.compile(
    rf"(?:<\|?(?:(?:begin_of_|start_)?({ANSWER}))\|?>|<\|begin_of_box\|>)(.*?)"
    rf"(?:<\|?(?:/|end_of_|end_)(?:{ANSWER})\|?>|<\|end_of_box\|>|\Z)",
    re.DOTALL | re.IGNORECASE,
)


def without_reasoning(text: str) -> str | None:
    """The answer alone; None where no end of the reasoning can be told."""
    found = _of_channels(text)
    if found is None:
        return None
    for pattern in (OLLAMA, GRANITE):
        found = pattern.sub("", found.replace("\u2019", "'") if pattern.match(found.replace("\u2019", "'")) else found)
    found = _of_tags(found)
    if found is None or OPENED.match(found) or A_LINE.match(found) or ALOUD.match(found.replace("\u2019", "'")):
        return None
    wrapped = WRAPPED.search(found)
    if wrapped and (found != text or not found[: wrapped.start()].strip()):
        found = wrapped[2]
    return found


def open_tag(prompt: str) -> str:
    """The mark at the end of a prompt, after which a model begins to reason; '' where there is none."""
    end = prompt.rstrip()[-40:]
    marks = [mark for mark in TAG.finditer(end) if mark.end() == len(end)]
    return marks[-1][0] if marks and _kind(marks[-1], end) == "open" else ""


def _of_channels(text: str) -> str | None:
    """Of OpenAI's harmony format the final channel, with its special tokens or without them."""
    if "<|channel|>" in text or "<|message|>" in text:
        finals = [mark for mark in CHANNEL.finditer(text) if mark[1].lower() in ("final", "")]
        if finals:
            return CHANNEL_END.split(text[finals[-1].end() :], maxsplit=1)[0]
        if (bare := BARE_MESSAGE.match(text)) and "analysis" not in bare[0] and "commentary" not in bare[0]:
            return CHANNEL_END.split(text[bare.end() :], maxsplit=1)[0]
        return None
    if marks := list(GLUED.finditer(text)):
        return text[marks[-1].end() :]
    if GLUED_START.match(text):
        return None
    return FINAL_START.sub("", text)


def _of_tags(text: str) -> str | None:
    """Without what stands between tags, nested or not, and before a closing one that was never opened."""
    if not OPENING.search(text):  # as in most texts; TAG takes 16 us for 70 words
        return text
    kept, depth, position = "", 0, 0
    for mark in TAG.finditer(text):
        kind = _kind(mark, text)
        if kind == "none":
            continue
        if depth == 0:
            kept += text[position : mark.start()]
        if kind == "open":
            depth += 1
        elif depth == 0:
            kept = ""
        else:
            depth -= 1
        position = mark.end()
    return None if depth else kept + text[position:]


def _kind(mark: re.Match[str], text: str) -> str:
    """'open', 'close' or 'none': a text's own words in brackets."""
    if mark["gemma"] or mark["medgemma"]:
        return "open"
    if mark["gemma_end"] or mark["medgemma_end"]:
        return "close"
    if mark["alone"]:
        return "none"
    closes = bool(mark["slash"] or mark["end"] or mark["part"] == "end" or "suffix" in mark[0].lower())
    if closes or mark["open"] in ("<", "&lt;", "\uff1c", "\u25c1"):
        return "close" if closes else "open"
    name = mark[0].strip("<>[]{}()|\u3010\u3011\u27e8\u27e9 ").lower()
    if mark[0] == "[THINK]":  # Mistral's
        return "open"
    closing = re.compile(rf"[\[{{(\u3010\u27e8]\s*/\s*{re.escape(name)}\s*[\]}})\u3011\u27e9]", re.IGNORECASE)
    return "open" if closing.search(text, mark.end()) else "none"
