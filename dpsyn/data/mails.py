"""Made-up mails of customers to a shop, drawn from a grammar: texts with labels, small, and on every machine."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from hashlib import blake2b

import numpy as np

from dpsyn.data import Records, held_out
from dpsyn.errors import invalid
from dpsyn.population import Label, Modality, Samples
from dpsyn.reading.labels import check_declared, combinations
from dpsyn.tables.columns import REFUSED
from dpsyn.tables.schema import Schema, check_schema
from dpsyn.validate import choice

TOPICS = ("delivery", "refund", "account", "repair")
MOODS = ("glad", "cross")
OWN, PUBLIC = 1875, 6000  # mails of the shop, in train and test together; and of the public part
COLUMNS = ("topic", "mood", "priority", "orders", "text")  # of the mails as rows
SKEW = 1.8  # the shop's mails take the first of n choices with probability n ** (-1 / SKEW)

# name, or name.topic, name.mood, name.topic.mood: choices; those after || are in public mails alone. {name} is one of
# its own choices.
GRAMMAR = """
mail: {hello} {main} {more} {end} {bye} | {main} {more} {end} | {hello} {main} {more} {aside} {more} {end} {bye}
 | {hello} {more} {main} {end} {bye} | {main} {detail} {detail} {bye}
hello: Hello, | Hi there, | Good morning, | Dear team, | Hello again, | To whom it may concern,
 || Dear Sir or Madam, | Hey, | Good evening, | Greetings,
more: {detail} | {detail} {detail} | {aside} | {detail} {aside} | {detail} {detail} {aside}
product: coffee machine | grinder | milk frother | kettle | toaster | coffee scale | teapot | travel mug
 | water filter
 || phone | suitcase | garden chair | printer | hiking stick | lamp | television | bicycle | mattress | drill
part: lid | pump | handle | power cord | drip tray | display | seal
 || screen | zip | left leg | battery | sole | gear
when: last Monday | two days ago | on Friday | last week | in March | a fortnight ago | this morning
 || at Easter | on the twelfth | before the holidays | yesterday evening | a month ago
days: three | five | ten | two | twelve
 || four | twenty | six
clerk: Marta | Jonas | Priya | Tom | your colleague at the counter
 || somebody on the phone | the manager | Mr Field | the desk
number: {digit}{digit}{digit}{digit}{digit}
digit: 4 | 7 | 1 | 0 | 9 | 3 | 6 | 2 | 8 | 5
customer: Anna | Peter K. | Lucia | D. Brown | Sam | Mrs Olsen | Yusuf | Helen and Ray
 || R. Novak | The Hills | Chen | Beatrice | A customer of many years
main.delivery.glad: The {product} I ordered {when} was here after only {days} days.
 | Order {number} came a day early, and nothing was missing.
 | What a pleasant surprise to find the parcel with my {product} on the doorstep already.
 | Your driver rang {when} and brought the {product} up to the fourth floor.
 | Thank you for sending the {product} so fast.
 | The parcel was packed with such care that even the glass arrived whole.
 || The flowers reached my mother on time. | The sofa came exactly in the hour that was promised.
 | Your courier found us although our street has no sign yet. | The groceries were cold and complete.
main.delivery.cross: Order {number} should have been here {when}, and there is still no sign of it.
 | I have waited {days} days for a {product} that you say is on its way.
 | The tracking page has shown the same line for {days} days.
 | Your driver left the {product} in the rain without ringing.
 | The box came open and half of what I ordered was not in it.
 | Instead of the {product} I was sent something that I never ordered.
 || The flowers arrived the day after the funeral. | Nobody came between eight and six although I took the day off.
 | The pizza was cold after an hour and a half. | My luggage is still at some other airport.
main.refund.glad: The money for the {product} was back in my account within {days} days.
 | Sending the {product} back was easier than buying it. | {clerk} took back the {product} without a single question.
 | I had the wrong size, and you paid it back, postage and all. | Thank you for the quick refund of order {number}.
 | It is good to see a shop that keeps its word about returns.
 || The airline paid for the night in the hotel. | The fee was gone from my statement the next day.
 | The theatre gave us our money back when the play was called off. | You reversed the double charge at once.
main.refund.cross: I sent the {product} back {when} and have not seen my money since.
 | You have refunded less than I paid for order {number}.
 | For {days} weeks I have been told that my refund is being processed.
 | Now you want to charge me for returning a {product} that was never used.
 | {clerk} promised me the full amount {when}, and I got a voucher.
 | Order {number} was cancelled, yet the money was taken all the same.
 || The hotel keeps the deposit for a room we never slept in. | I was billed twice for one ticket.
 | The gym goes on taking its fee although I left in spring. | My bank says that you never sent the money.
main.account.glad: I could not log in, and {clerk} had it mended in minutes.
 | The new page for my orders is so much clearer than the old one. | Thank you for merging my two accounts.
 | Changing my address took less than a minute.
 | My points from the old card are all there, even those for the {product}. | The reset link came at once and worked.
 || The app now opens with my fingerprint. | Moving my number from the other company went smoothly.
 | I closed the old savings book online, without a visit. | Your chat robot understood what I wanted.
main.account.cross: My account was locked {when}, and nobody can say why.
 | The link for a new password has come {days} times and never works. | Somebody else's address stands in my account.
 | Your page says that my mail address is unknown, yet you send me offers to it.
 | I asked you {when} to delete my data, and the letters go on.
 | After the update all my saved orders are gone, order {number} among them.
 || The app logs me out in the middle of every payment. | My card was blocked abroad without a word.
 | You have spelt my name wrong in the contract for the third time. | The code you text me comes an hour late.
main.repair.glad: The {product} works like new since the {part} was replaced.
 | {clerk} mended my {product} while I waited. | The spare {part} came by post and fitted at once.
 | I had given up on the {product}, and you brought it back to life.
 | Thank you for repairing the {product} although the guarantee had run out.
 | The workshop found the fault in the {part} that two others had missed.
 || The plumber was here within the hour. | The garage changed the tyre and charged nothing.
 | The watchmaker even polished the case. | Your technician fixed the line from afar.
main.repair.cross: The {part} of the {product} broke after {days} weeks.
 | My {product} came back from the workshop in a worse state than before.
 | The {product} leaks from the {part}, and the kitchen smells of burning.
 | For the third time the {part} of my {product} has failed.
 | Your workshop took in the {product} {when} and has not answered since.
 | You tell me that a broken {part} is not covered, which is absurd.
 || The engineer did not turn up again. | The heating has been off for a week in the middle of winter.
 | The car makes the same noise as before the repair. | The seam split the first time I wore it.
detail.delivery: The number of the parcel ends in {number}. | I chose the express service.
 | It was meant as a present. | The {product} was in the same box. | I live at the back of the building.
 | A neighbour signed for it. | The note in the mailbox named another street. | The confirmation came {when}.
 || It crossed a border on the way. | The depot is an hour away by car. | The lift was out of order that day.
detail.refund: The receipt is attached. | I paid by card. | The form had the number {number}.
 | It was bought in your shop. | The {product} was still in its wrapping. | The price has dropped since.
 | I returned the {product} by post {when}. | You have my bank details already.
 || I booked through an agent. | The contract allows it. | It came to twice the rent.
detail.account: My customer number is {number}. | I use the same mail address as always.
 | I tried it on two computers. | The last order there was a {product}. | I have been with you for {days} years.
 | It began {when}. | The message on the page is only a code.
 || I moved abroad for work. | My bank uses the same system.
detail.repair: It was bought {when}. | I followed the manual. | I clean the {part} every week.
 | The guarantee runs for {days} months more. | It is used {days} times a day.
 | The serial number begins with {number}. | My sister's {product} does the same.
 || It happened on the motorway. | A photo is attached. | The model is no longer made.
aside.glad: I have told all my friends. | {clerk} deserves a rise. | That is rare these days. | It made my week.
 | I will gladly order a {product} next.
 || Five stars from us. | The children were delighted, too. | Keep it up.
aside.cross: I have called {days} times. | {clerk} hung up on me. | Nobody seems to be in charge.
 | My patience is at an end. | I expected better for that price.
 || I am going to write to the papers. | This is no way to treat people. | Shame on you.
end.glad: Thank you so much. | Please pass on my thanks to {clerk}. | You have a customer for life.
 | Many thanks for the good work. | I just wanted you to know.
 || What a relief. | Bravo. | I wish all companies were like that.
end.cross: Please see to it today. | I want my money back. | I expect an answer within {days} days.
 | What are you going to do about it? | Otherwise I will shop elsewhere. | Let me talk to somebody who can decide.
 || My lawyer has a copy of this. | Cancel everything. | I demand to be compensated.
bye: Regards, {customer} | {customer} | Best wishes, {customer} | Yours, {customer}
 || Sincerely, {customer} | Cheers, {customer}
"""


@dataclass(frozen=True)
class Mails:
    """Texts, object of str [n], label columns `topic` and `mood`.

    split: 'train', 'test' (about a fifth of the shop's mails, chosen by a hash of each) or 'public' (of many trades, in
    more words and another mix: a pool for `api=pool`).
    id, records, on_error: as in `dpsyn.data.Data`. No row of it is ever refused.
    """

    split: str = "train"
    id: str | None = "mails"
    records: int | None = 1500
    on_error: str = "refuse"

    def __post_init__(self) -> None:
        choice("data.split", self.split, ("train", "test", "public"))
        check_declared(self.id, self.records, self.on_error)

    @property
    def labels(self) -> Sequence[Label]:
        return combinations({"topic": TOPICS, "mood": MOODS})

    @property
    def unit_column(self) -> None:
        return None

    @property
    def max_refused(self) -> float:
        return 0.0

    @property
    def max_adjusted(self) -> float:
        return 0.0

    def check(self) -> None:
        """There is nothing that could be missing."""

    def fingerprint(self) -> str:
        return blake2b(repr(_mails(self.split)).encode(), digest_size=32).hexdigest()

    @property
    def modality(self) -> Modality:
        return "texts"

    @property
    def place(self) -> str | None:
        return None

    def digests(self) -> set[str]:
        return {self.fingerprint()}

    def batches(self, size: int) -> Iterator[Records]:
        mails = _mails(self.split)
        for start in range(0, len(mails), size):
            texts, labels = zip(*mails[start : start + size], strict=True)
            yield Records(Samples(np.array(texts, object)), np.array(labels, np.int64))


@dataclass(frozen=True)
class MailRows:
    """The same mails as rows of a table: what the shop knows of each, and its text.

    schema: of the columns topic, mood, priority, orders (of the customer so far) and text, some or all.
    split: 'train' or 'test', as of `Mails`.
    id, records, on_error: as in `dpsyn.data.Data`. No row of it is ever refused.
    """

    schema: Schema
    split: str = "train"
    id: str | None = "mail_rows"
    records: int | None = 1500
    on_error: str = "refuse"

    def __post_init__(self) -> None:
        check_schema("data.schema", self.schema)
        choice("data.split", self.split, ("train", "test"))
        check_declared(self.id, self.records, self.on_error)

    @property
    def labels(self) -> Sequence[Label]:
        return self.schema.labels

    @property
    def unit_column(self) -> None:
        return None

    @property
    def max_refused(self) -> float:
        return 0.0

    @property
    def max_adjusted(self) -> float:
        return 0.0

    def check(self) -> None:
        """Raises UserError for a schema of other columns."""
        if wrong := set(self.schema.fields) - set(COLUMNS):
            raise invalid("data.schema.file", min(wrong), f"columns of the mails ({', '.join(COLUMNS)})")

    def fingerprint(self) -> str:
        return blake2b(repr(self._content().tolist()).encode(), digest_size=32).hexdigest()

    @property
    def place(self) -> str | None:
        return None

    def digests(self) -> set[str]:
        return {self.fingerprint()}

    def batches(self, size: int) -> Iterator[Records]:
        content = self._content()
        labels = self.schema.labels_of(content)
        for start in range(0, len(content), size):
            yield Records(Samples(content[start : start + size]), labels[start : start + size])

    def _content(self) -> np.ndarray:
        cells = dict(zip(COLUMNS, zip(*map(_row, _mails(self.split)), strict=True), strict=True))
        content, rules = self.schema.read(cells)
        assert (rules < REFUSED).all()
        return content


def _row(mail: tuple[str, int]) -> tuple[str, ...]:
    """The cells of COLUMNS: what is no part of a mail follows from its topic and mood, with chance by its text."""
    text, label = mail
    topic, mood = TOPICS[label // len(MOODS)], MOODS[label % len(MOODS)]
    draw = random.Random(text)
    urgent = {"delivery": 0.5, "refund": 0.4, "account": 0.2, "repair": 0.6}[topic] * (1.0 if mood == "cross" else 0.2)
    priority = "high" if draw.random() < urgent else "low" if draw.random() < 0.4 else "normal"
    orders = int(draw.expovariate(1 / (12 if mood == "glad" else 5)))
    return topic, mood, priority, str(min(orders, 60)), text


@cache
def _mails(split: str) -> list[tuple[str, int]]:
    """Text and label of each mail."""
    public = split == "public"
    mails = [_mail(row, public) for row in range(PUBLIC if public else OWN)]
    return mails if public else [mail for mail in mails if held_out(mail[0].encode()) == (split == "test")]


def _mail(row: int, public: bool) -> tuple[str, int]:
    draw = random.Random(f"{public} {row}")
    label = _place(draw, len(TOPICS) * len(MOODS), 1.0 if public else 1.2)
    topic, mood = TOPICS[label // len(MOODS)], MOODS[label % len(MOODS)]
    said: set[str] = set()  # no sentence twice

    def chosen(match: re.Match[str]) -> str:
        name = match.group(1)
        names = (f"{name}.{topic}.{mood}", f"{name}.{topic}", f"{name}.{mood}", name)
        own, others = next(_grammar()[name] for name in names if name in _grammar())
        choices = own + others if public else own
        place = _place(draw, len(choices), 1.0 if public else SKEW)
        while choices[place].endswith(".") and choices[place] in said:
            place = (place + 1) % len(choices)
        said.add(choices[place])
        return _filled(choices[place])

    def _filled(text: str) -> str:
        return re.sub(r"\{(\w+)\}", chosen, text)

    return _filled("{mail}"), label


def _place(draw: random.Random, n: int, skew: float) -> int:
    return int(n * draw.random() ** skew)


@cache
def _grammar() -> dict[str, tuple[list[str], list[str]]]:
    """Name -> choices of all mails, choices of public ones besides."""
    rules: dict[str, tuple[list[str], list[str]]] = {}
    for rule in re.split(r"\n(?=\S)", GRAMMAR.strip()):
        name, text = rule.split(":", 1)
        own, _, others = text.partition("||")
        rules[name] = (_choices(own), _choices(others) if others else [])
    return rules


def _choices(text: str) -> list[str]:
    return [" ".join(choice.split()) for choice in text.split("|")]
