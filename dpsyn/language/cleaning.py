"""What a language model is asked, and what of its answer is kept: the text, without what stands around it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from dpsyn.language.reasoning import without_reasoning

BLANK = "_"
# an answer to a beginning goes round in circles where of so many words or more a smaller share of runs of three differ
CIRCLE_WORDS, CIRCLE_SHARE = 20, 0.6
LONG_RUN = 6  # words in a row, which do not stand in it twice either
MOST_BLANKS = 0.1  # an answer with a larger share of words left blank has not filled them in


@dataclass(frozen=True)
class Request:
    """messages: {'role': 'system' | 'user', 'content': str} each; the last may be of 'assistant': the beginning that
    the answer goes on from. max_tokens: of the answer, without that. instructions: sentences of the messages that are
    none of a parent's, and should be none of an answer's."""

    messages: tuple[Mapping[str, str], ...]
    max_tokens: int
    instructions: tuple[str, ...] = ()


END = re.compile(
    r"<\|(?:im_end|eot_id|endoftext|end|eom_id|end_of_text|return|eot|eom)\|>|</s>|<end_of_turn>"
    r"|<\|im_start\|>(?!\s*assistant)"
)
MARKS = re.compile(r"<\|[a-z_]{2,30}\|>|<s>|<bos>|<eos>|<pad>|\[/?INST\]|<start_of_turn>")
SENTENCE_END = re.compile(r"[.!?\u2026\u3002\uff01\uff1f][\"')\]\u201d\u2019\u00bb]*(?=\s|$)")
KIND = r"(?:review|abstract|text|paragraph|passage|version|sample|paraphrase|rewrite|variation|answer|response|output)"
WIDER = (
    r"(?:e-?mail|mail|letter|message|post|story|note|complaint|request|tweet|dialogue|conversation|question|description"
    r"|summary|article|comment|feedback|example|draft|record|report|entry|option|alternative|copy|completion|result)"
)
MADE = r"(?:rewritten|rephrased|paraphrased|revised|new|final|completed|filled(?:-| )?in|generated|synthetic|modified)"
HERE = r"here(?:'s| is| are| you go| you are)\b"
SURELY = r"(?:sure(?: thing)?|certainly|of course|absolutely|okay|ok|great|got it|understood|alright|no problem)"
MAYBE_SURE = rf"(?:{SURELY}\b[^\n:]{{0,80}}?[,.!:]\s*)?"
PREAMBLE = re.compile(
    rf"\A{MAYBE_SURE}{HERE}[^\n:]{{0,160}}\b{KIND}s?\b[^\n:]{{0,160}}:\**\s*"
    rf"|\A{MAYBE_SURE}{HERE}[^\n:]{{0,160}}\b(?:{WIDER}|one|it)s?\b[^\n:]{{0,160}}:\**[ \t]*\n\s*"
    rf"|\A{SURELY}[,.!]+\s*{HERE}[^\n:.!]{{0,160}}:\**\s*"
    r"|\A(?:sure(?: thing)?|certainly|of course|absolutely)\b[^\n]{0,160}[:!.][ \t]*\n\s*",
    re.IGNORECASE,
)
SEVERAL = re.compile(
    rf"\b(?:two|three|four|five|six|ten|several|some|a few|\d+)\b[^\n:]*\b(?:{KIND}|{WIDER})s\b", re.IGNORECASE
)
HEADING = re.compile(
    rf"\A(?:#+ *)?\**_?(?:{MADE} )?{KIND}_?\**\s*:\**\s+|\A(?:#+ *)?\**_?{MADE} {WIDER}_?\**\s*:\**\s+"
    rf"|\A(?:#+ *\**|\*\*)(?:(?:the|your) )?(?:{MADE} )?(?:{KIND}|{WIDER})\**[ \t]*\n\s*",
    re.IGNORECASE,
)
FENCE = re.compile(r"^[ \t]*(?:`{3,}|~{3,})[ \t]*[\w+-]*[ \t]*$\n?", re.MULTILINE)
FENCED = re.compile(
    r"\A\s*(?:`{3,}|~{3,})[ \t]*[\w+-]*[ \t]*\n(.*?)\n?[ \t]*(?:(?:`{3,}|~{3,})\s*(?:\n.*)?)?\Z", re.DOTALL
)
RULE = re.compile(r"^[ \t]*(?:-{3,}|\*{3,}|_{3,}|={3,})[ \t]*$\n?", re.MULTILINE)
HASHES = re.compile(r"^[ \t]{0,3}#{1,6}[ \t]+(?=\S)|(?<=\S)[ \t]+#{1,6}[ \t]*$", re.MULTILINE)
BOLD = re.compile(
    r"(?<![\w*])(\*{1,3})(?=[^\s*])([^\n*]*[^\s*])\1(?![\w*])|(?<!\w)(_{2,3})(?=[^\s_])([^\n_]*[^\s_])\3(?!\w)"
)
BULLET = re.compile(r"^[ \t]*[-*\u2022\u2023\u25aa\u25cf][ \t]+(?=\S)", re.MULTILINE)
NUMBER = re.compile(r"^[ \t]*\(?\d{1,2}[.)][ \t]+(?=[^\W\d_]|[\"'\u201c])", re.MULTILINE)
REMARK = re.compile(
    r"[(\[]\s*(?:about|approximately|approx\.?|around|roughly|exactly|~|total:?)?\s*\d+ words?\s*[)\]]"
    r"|[(\[]?\s*\**word count\**\s*[:=]\**\s*~?(?:about |approximately )?\d+(?: words?)?\s*[)\]]?\.?(?=\s|\Z)",
    re.IGNORECASE,
)
FAREWELL = re.compile(
    r"\n\s*(?:let me know (?:if|whether)|i hope this (?:helps|meets)|feel free to (?:ask|let me)|would you like me to)"
    r"[^\n]*\Z",
    re.IGNORECASE,
)
UNABLE = r"(?:can't|cannot|can not|won't|am unable to|'m unable to|am not able to|'m not able to|must decline to)"
REFUSAL = re.compile(
    rf"\A(?:(?:i'm|i am) (?:very |really )?sorry|sorry|i apologi[sz]e|my apologies|unfortunately)?[,.;]?\s*(?:but\s+)?"
    rf"i\s?{UNABLE} (?:\w+ly )?(?:assist|help(?! but)|comply|fulfil|provide|write|create|generate|produce|continue|"
    r"complete|fill in|paraphrase|rewrite|do that|engage|answer this|respond to this)"
    r"|\Aas an? (?:ai|artificial intelligence|large language model|language model)(?: language)?(?: model| assistant)?"
    r",? i\b",
    re.IGNORECASE,
)
PROGRAM = re.compile(
    r"\bas an ai\b|\bi(?:'m| am) (?:just |only )?(?:an?|your|the)(?: [\w-]+){0,2} "
    r"(?:chat-?bot|ai|ai assistant|virtual assistant|language model)\b",
    re.IGNORECASE,
)
QUOTES = {'"': '"', "\u201c": "\u201d", "\u00ab": "\u00bb", "\u201e": "\u201c", "\u2018": "\u2019", "'": "'"}
LEAST_ECHO = 5  # words of a prompt that an answer does not have by chance


def cleaned(answer: str | None, keep_lines: bool, request: Request | None, cut: bool) -> str | None:
    """The text of an answer, without reasoning, quotes, preambles, Markdown and remarks on its length; None: it is of
    no use.

    answer: as the model gave it; None: it gave none.
    keep_lines: its line breaks are kept; else they are spaces.
    request: that it answers, whose own words are taken out; None: it is not known.
    cut: whether it was cut off; then it ends with its last whole sentence, if it has one.
    """
    text = (answer or "").encode("utf-8", "ignore").decode("utf-8")  # no lone surrogates
    text = re.sub(
        r"[\x00-\x08\x0b-\x0c\x0e-\x1f\x7f-\x9f\ufeff\ufffd]", "", text.replace("\r\n", "\n").replace("\r", "\n")
    )
    if (thought_out := without_reasoning(text)) is None:
        return None
    text = re.sub(r"\A\s*<\|im_start\|>\s*assistant\b", "", thought_out)
    text = MARKS.sub(" ", END.split(text, maxsplit=1)[0]).strip()
    text = _without_echo(text, request)
    if REFUSAL.match(text.replace("\u2019", "'")):  # of the same length
        return None
    several = False
    for _ in range(4):  # a preamble, a heading and quotes may stand around each other
        before = text
        if fenced := FENCED.match(text):
            text = fenced[1].strip()
        for pattern in (PREAMBLE, HEADING):
            if found := pattern.match(text.replace("\u2019", "'")):
                several = several or bool(SEVERAL.search(found[0]))
                text = text[found.end() :].strip()
        text = REMARK.sub("", text) if "word" in text.lower() else text
        text = _unquoted(FAREWELL.sub("", text).strip())
        if text == before:
            break
    text = _without_markdown(text, keep_lines, several)
    if cut:
        ends = [match.end() for match in SENTENCE_END.finditer(text)]
        text = text[: ends[-1]] if ends else text
    if keep_lines:
        lines = [" ".join(line.split()) for line in text.split("\n")]
        text = re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()
    else:
        text = " ".join(text.split())
    words = text.split()
    blanks = sum(set(word.strip(".,;:!?")) == {BLANK} for word in words) if BLANK in text else 0
    if not re.search(r"\w", text.replace(BLANK, "")) or blanks > MOST_BLANKS * len(words):
        return None
    if begun := beginning_of(request):
        quoted = _as_quoted(text)
        if quoted is None or len(quoted.split()) <= len(begun.split()):  # nothing whole was added
            return None
        text = quoted
    return re.sub(rf"(?:^|(?<=\s)){BLANK}+[^\S\n]+|\s+{BLANK}+(?=\W*$)", "", text) if blanks else text


def beginning_of(request: Request | None) -> str:
    """The beginning that a model was given to go on from; '' for none."""
    last = request.messages[-1] if request is not None and request.messages else {"role": "", "content": ""}
    return last["content"] if last["role"] == "assistant" else ""


def _as_quoted(text: str) -> str | None:
    """What a small model quotes of somebody: without a sentence that goes on with who says it; None where it goes round
    in circles, or falls out of its part and says that it is a program. Of models that are given no beginning nothing is
    judged so: a refrain, or a robot's tale, may be what was asked for."""
    if PROGRAM.search(text.replace("\u2019", "'")):
        return None
    if text.endswith(","):
        ends = [match.end() for match in SENTENCE_END.finditer(text)]
        if not ends:  # '"Not good," she says'
            return None
        text = text[: ends[-1]]
    words = text.split()
    runs = list(zip(words, words[1:], words[2:], strict=False))
    long = [tuple(words[at : at + LONG_RUN]) for at in range(len(words) - LONG_RUN + 1)]
    circles = len(words) >= CIRCLE_WORDS and len(set(runs)) < CIRCLE_SHARE * len(runs)
    return None if circles or len(set(long)) < len(long) else text


def _without_echo(text: str, request: Request | None) -> str:
    """Without the prompt before the answer, and without sentences of its instructions at the beginning and the end."""
    if request is None:
        return text
    for message in request.messages:
        if message["role"] == "assistant":
            continue
        for asked in (message["content"], " ".join(message["content"].split())):
            if len(asked.split()) >= LEAST_ECHO and text.startswith(asked):
                text = text[len(asked) :].strip()
    for _ in range(20):
        before = text
        for asked in request.instructions:
            rest, head = text[len(asked) :], text[: -len(asked)]
            is_whole = asked[-1] in ".!?:"
            if text[: len(asked)].casefold() == asked.casefold() and (is_whole or rest[:1] in ("", "\n")):
                text = rest.lstrip(" \t\n:-").strip()
            elif text[-len(asked) :].casefold() == asked.casefold() and re.search(r"(?:[.!?:\"')]\s+|\n\s*)\Z", head):
                text = head.strip()
        if text == before:
            break
    return text


def sentences(instructions: str) -> tuple[str, ...]:
    """Those long enough to be known again, the longest first."""
    parts = re.split(r"(?<=[.!?:])\s+|\n+", instructions)
    long = {part.strip() for part in parts if len(part.split()) >= LEAST_ECHO}
    return tuple(sorted(long, key=lambda part: (-len(part), part)))


def _without_markdown(text: str, keep_lines: bool, several: bool) -> str:
    """several: a preamble says that more than one text follows; the first is taken."""
    text = RULE.sub("", FENCE.sub("", text))
    text = HASHES.sub("", text) if "#" in text else text
    if "*" in text or "_" in text:
        for _ in range(2):  # bold in italics
            text = BOLD.sub(lambda mark: mark[2] or mark[4], text)
    lines = [line for line in text.split("\n") if line.strip()]
    for item in (NUMBER, BULLET):
        if several and len(items := item.split(text)) > 2 and not items[0].strip():
            return items[1].strip()
        if lines and all(item.match(line) for line in lines) and (len(lines) > 1 or len(text.split()) > LEAST_ECHO):
            text = item.sub("", text)
    if lines and all(line.lstrip().startswith("> ") for line in lines):
        text = re.sub(r"^[ \t]*>[ \t]?", "", text, flags=re.MULTILINE)
    return (text if keep_lines else BULLET.sub("", text)).strip()


def _unquoted(text: str) -> str:
    """Without the quotes around the whole, and without one that an answer cut off has left open."""
    close = QUOTES.get(text[:1])
    if close is None:
        return text
    whole = text.endswith(close) and len(text) > 1
    if not whole and text[0] in "'\u2018":  # an apostrophe
        return text
    inner = text[1:-1] if whole else text[1:]
    return text if text[0] in inner or close in inner else inner.strip()
