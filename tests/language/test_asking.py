"""The queue of questions, against an endpoint on the loopback that fails in all the ways of real ones."""

import asyncio
import base64
import json
import logging
import random
import shutil
import ssl
import subprocess
import time
from collections import Counter

import pytest
from chat_server import FILTERED, ChatServer, Reply, Window, completion, failure, words
from image_server import ImageServer

from dpsyn.errors import UserError
from dpsyn.language import asking, endpoints, pace
from dpsyn.language.asking import Question, ask, ping, tokens_of
from dpsyn.language.endpoints import Endpoint
from dpsyn.language.pace import Limits

KEY = "sk-a-key-that-nobody-may-see"
N = 40


@pytest.fixture(autouse=True)
def haste(monkeypatch):
    monkeypatch.setattr("dpsyn.language.pace.PAUSE", 0.02)
    monkeypatch.setattr("dpsyn.language.pace.LONGEST_PAUSE", 0.1)


def limits(**settings):
    given = {"concurrency": 8, "requests_per_minute": None, "tokens_per_minute": None, "timeout": 5, "deadline": 60}
    return Limits(**{**given, "patience": 20, "retries": 6, **settings})


def questions(n=N, tokens=50):
    return [
        Question(i, {"model": "m", "messages": [{"role": "user", "content": f"row {i}"}]}, tokens) for i in range(n)
    ]


def number(asked):
    return int(asked.prompt.split()[1])


class Kept:
    """An asker that takes every answer. follow: what to ask in place of an answer of no use."""

    def __init__(self, follow=lambda question, answer: None):
        self.answers, self.lost, self.without, self.follow = {}, Counter(), {}, follow

    def before(self, question):
        return True

    def answered(self, question, answer):
        other = self.follow(question, answer)
        if other is None:
            assert question.key not in self.answers
            self.answers[question.key] = answer
        return other

    def failed(self, question, sent):
        self.lost[sent] += 1

    def given_up(self, question, reason):
        self.without[question.key] = reason


def asked_of(*servers, n=N, asker=None, tokens=50, **settings):
    asker = asker or Kept()
    ask([questions(n, tokens)], [Endpoint(server.url, KEY, "A_KEY") for server in servers], limits(**settings), asker)
    return asker


def is_whole(asker, server, n=N):
    """Every row has the answer to its own request, and every success was asked for once."""
    assert len(server.answered) == len({asked.prompt for asked in server.answered}) == n
    texts = {number(asked): words(asked) for asked in server.answered}
    return {key: answer.text for key, answer in asker.answers.items()} == texts and not asker.without


def test_every_question_gets_its_own_answer_whatever_the_order_of_arrival():
    with ChatServer(lambda asked, server: Reply(after=0.001 + 0.1 * (number(asked) % 3 == 0))) as server:
        asker = asked_of(server)
        assert is_whole(asker, server) and 4 < server.most_at_once <= 8
    answer = asker.answers[0]
    assert (answer.finish, answer.prompt_tokens, answer.answer_tokens) == ("stop", 20, 10)
    assert list(asker.answers) != sorted(asker.answers)


def test_a_request_is_its_body_and_the_key_and_tells_nothing_of_this_machine(monkeypatch):
    for name in ("OPENAI_ORG_ID", "OPENAI_PROJECT_ID", "OPENAI_ADMIN_KEY"):
        monkeypatch.setenv(name, "an-account-elsewhere")
    with ChatServer() as server:
        asked_of(server, n=1)
        (asked,) = server.log
    assert asked.path == "/v1/chat/completions" and asked.key == KEY
    assert asked.body == {"model": "m", "messages": [{"role": "user", "content": "row 0"}]}
    told = {name for name in asked.headers if name.startswith("x-stainless")}
    assert told <= {"x-stainless-retry-count", "x-stainless-read-timeout"}
    assert "an-account-elsewhere" not in str(asked.headers)
    assert KEY not in repr(Endpoint(server.url, KEY, "A_KEY"))


BAD_ANSWERS = {
    "500": failure(500, "oops"),
    "503 that says when": failure(503, "loading", retry_after="0.05"),
    "reset": Reply(cut="reset"),
    "half a body": Reply(cut=0.5),
    "half an object": Reply(body=b'{"choices": [{"message": {"content": "An ans'),
    "null content": Reply(body=completion(None)),
    "no choices": Reply(body={"choices": []}),
    "null": Reply(body=b"null"),
    "an error with status 200": Reply(body={"error": {"message": "overloaded"}}),
    "a page": Reply(body=b"<html>", headers={"Content-Type": "text/html"}),
}


@pytest.mark.parametrize("reply", BAD_ANSWERS.values(), ids=BAD_ANSWERS)
def test_an_answer_that_is_none_is_asked_for_again(reply):
    seen = Counter()

    def behave(asked, server):
        seen[asked.prompt] += 1
        return reply if number(asked) % 4 == 0 and seen[asked.prompt] <= 2 else None

    with ChatServer(behave) as server:
        asker = asked_of(server)
        assert is_whole(asker, server) and len(server.log) == N + 2 * N // 4


@pytest.mark.parametrize("reply", [Reply(after=5), Reply(drip=0.1)], ids=["hangs", "drips"])
def test_a_request_that_takes_too_long_is_given_up_and_asked_again(reply):
    seen = Counter()

    def behave(asked, server):
        seen[asked.prompt] += 1
        return reply if number(asked) < 2 and seen[asked.prompt] == 1 else None

    with ChatServer(behave) as server:
        start = time.monotonic()
        asker = asked_of(server, n=8, timeout=0.5)
        assert time.monotonic() - start < 4
        assert len(asker.answers) == 8 and asker.lost == {True: 2} and not asker.without


@pytest.mark.parametrize("after", [{}, {"retry_after": "0.1"}, {"retry_after_ms": "100"}], ids=["", "s", "ms"])
def test_a_storm_of_429_costs_its_own_requests_and_no_row(after):
    seen = Counter()

    def behave(asked, server):
        seen[asked.prompt] += 1
        return failure(429, "slow down", **after) if seen[asked.prompt] <= 2 else None

    with ChatServer(behave) as server:
        asker = asked_of(server, n=10, retries=0)
        assert is_whole(asker, server, 10) and len(server.log) == 30


def test_a_storm_of_everything_leaves_no_row_empty_and_asks_for_no_success_twice():
    draw = random.Random(7)
    kinds = [*BAD_ANSWERS.values(), failure(429), failure(429, retry_after="0.05"), failure(529)]

    def behave(asked, server):
        return draw.choice(kinds) if draw.random() < 0.3 else None

    with ChatServer(behave) as server:
        assert is_whole(asked_of(server, n=80, concurrency=16, retries=20), server, 80)


def test_retry_after_is_obeyed_by_all_requests_in_seconds_and_as_a_date(monkeypatch):
    def behave(asked, server):
        return failure(429, retry_after="0.6") if len(server.log) == 4 else None

    with ChatServer(behave) as server:
        assert is_whole(asked_of(server, concurrency=1, n=10), server, 10)
        times = [asked.at for asked in server.log]
    assert times[4] - times[3] >= 0.59
    soon = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 30))
    assert 28 <= endpoints.retry_after({"retry-after": soon}) <= 30
    assert endpoints.retry_after({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}) == 0
    assert endpoints.retry_after({"retry-after": "86400"}) == endpoints.LONGEST_RETRY_AFTER
    assert endpoints.retry_after({"retry-after": "soon"}) is None and endpoints.retry_after({}) is None
    assert endpoints.retry_after({}, '{"retryDelay": "32s"}') == 32
    assert endpoints.retry_after({}, "Please try again in 1.5s.") == 1.5
    monkeypatch.setattr("dpsyn.language.pace.PAUSE", 0.5)
    monkeypatch.setattr("dpsyn.language.pace.LONGEST_PAUSE", 60)
    assert 3 <= pace.backoff(3) <= 4 and 45 <= pace.backoff(5000) <= 60


def test_a_limit_that_is_told_is_kept_and_used():
    window = Window(36, 1)  # a busy machine bunches what was sent evenly

    def behave(asked, server):
        return failure(429, retry_after="1") if window.full(asked.at) else None

    with ChatServer(behave) as server:
        asker = asked_of(server, n=45, requests_per_minute=1800)
        times = [asked.at for asked in server.log]
        assert is_whole(asker, server, 45) and len(server.log) == 45  # not one 429
    assert times[-1] - times[0] > 1.2


def test_a_limit_that_is_not_told_is_found(monkeypatch):
    window = Window(20, 0.5)

    def behave(asked, server):
        return failure(429) if window.full(asked.at) else None

    with ChatServer(behave) as server:
        asker = asked_of(server, n=100, concurrency=32)
        assert is_whole(asker, server, 100)
        assert len(server.log) < 300


def test_tokens_a_minute_are_set_aside_and_given_back_by_what_was_used():
    def span(told):
        with ChatServer(lambda asked, server: Reply(body=completion("A text.", usage=told))) as server:
            asked_of(server, n=13, concurrency=2, tokens_per_minute=60_000, tokens=100)
            times = [asked.at for asked in server.log]
        return times[-1] - times[0]

    # 100 tokens are 0.1 s; of the first, a quarter of a second may be caught up
    assert span(told=False) > 0.9
    assert span(told=True) < 0.9  # 30 of them were used


def test_an_endpoint_that_is_down_is_left_alone_and_all_goes_on_when_it_is_back():
    with ChatServer(latency=0.01) as server:

        def until_ten(asked, server):
            if len(server.answered) >= 10:
                server.behave = lambda *_: None
                server.loop.create_task(down())

        async def down():
            await server._stop()
            await asyncio.sleep(0.5)
            await server._start()

        server.behave = until_ten
        asker = asked_of(server, retries=2)
        assert len(asker.answers) == N and not asker.without  # of the resets, one each


def test_an_endpoint_that_fails_again_and_again_gets_a_single_request_at_once():
    def behave(asked, server):
        return None if server.down_until < asked.at else failure(503)

    with ChatServer(behave, latency=0.01) as server:
        server.down_until = time.monotonic() + 1
        asker = asked_of(server, retries=3)
        assert is_whole(asker, server)
        down = [asked for asked in server.log if asked.at <= server.down_until]
    assert len(down) < 8 + pace.FAILURES + 25  # those of the first moment, then a probe every 0.1 s


def test_with_all_endpoints_down_for_good_it_stops_with_one_line():
    with ChatServer() as server:
        server.stop()
        start = time.monotonic()
        with pytest.raises(UserError) as stopped:
            asked_of(server, server, patience=0.5)
        assert 0.5 <= time.monotonic() - start < 5
        line = str(stopped.value)
        assert line.startswith("api.base_url=127.0.0.1:") and "\n" not in line and KEY not in line
        assert "api.patience=0.5 s" in line and "Connect call failed" in line
        server.behave = lambda *_: failure(503)
        server.start()
        asker = Kept()
        with pytest.raises(UserError, match=r"status 503.*api\.patience"):
            asked_of(server, patience=0.5, retries=100, asker=asker)
        assert not asker.without


def test_of_two_endpoints_a_dead_one_is_left_out_and_both_share_the_load_when_well():
    with ChatServer(latency=0.02) as one, ChatServer(latency=0.02) as other:
        asker = asked_of(one, other, concurrency=4)
        assert len(one.log) + len(other.log) == N and min(len(one.log), len(other.log)) > N // 4
        one.stop()
        other.log.clear()
        other.answered.clear()
        asker = asked_of(one, other, concurrency=4)
        assert is_whole(asker, other) and len(other.log) == N


def test_several_keys_at_one_address_have_a_pace_of_their_own(caplog):
    def behave(asked, server):
        return failure(429, "no more", "insufficient_quota") if asked.key == "one" else None

    with ChatServer(behave) as server, caplog.at_level(logging.WARNING):
        asker, two = Kept(), [Endpoint(server.url, "one", "KEY_1"), Endpoint(server.url, "two", "KEY_2")]
        ask([questions()], two, limits(), asker)
        assert is_whole(asker, server) and {asked.key for asked in server.answered} == {"two"}
        assert "api.api_key_env=KEY_1: expected a key with credit left" in caplog.text
        with pytest.raises(UserError, match="KEY_1: expected a key with credit left"):
            ask([questions()], two[:1], limits(), asker)


def test_fewer_are_asked_at_once_when_answers_take_much_longer_than_they_did():
    line = pace.Pacer(Endpoint(None, None, None), limits(concurrency=32), None)
    for i in range(500):
        line.on_success(0.01 * i, 0.01 * i - 0.1)
    assert line.window == 32
    for i in range(500, 1000):
        line.on_success(0.01 * i, 0.01 * i - 0.5)
    assert 4 <= line.window < 32
    for i in range(1000, 3000):
        line.on_success(0.01 * i, 0.01 * i - 0.1)
    assert line.window == 32


def test_a_row_that_always_fails_is_given_up_and_the_others_are_not_held_up():
    def behave(asked, server):
        return failure(500) if number(asked) % 10 == 0 else None

    with ChatServer(behave) as server:
        asker = asked_of(server, retries=3)
        assert asker.without == dict.fromkeys(range(0, N, 10), "4 attempts, the last one: status 500")
        assert len(asker.answers) == N - 4 and len(server.log) == N + 3 * 4


def test_a_row_gets_no_longer_than_its_deadline():
    def behave(asked, server):
        return failure(500) if number(asked) == 3 else None

    with ChatServer(behave) as server:
        start = time.monotonic()
        asker = asked_of(server, retries=1000, deadline=0.3)
        assert time.monotonic() - start < 5
        assert asker.without == {3: "no answer within the deadline, the last time: status 500"}


STOPS = {
    "401": (
        failure(401, f"Incorrect API key provided: {KEY}."),
        r"^api\.api_key_env=A_KEY: expected a key that may use",
    ),
    "403": (
        failure(403, "Country, region, or territory not supported", "unsupported_country"),
        r"^api\.base_url=127.*: expected an endpoint that allows this request\. .* 403: Country, region, or ter",
    ),
    "403 of a gateway": (
        Reply(403, b"<html><head><title>Blocked by Example Corp</title></head>", {"Content-Type": "text/html"}),
        r"answered 403: a web page \(Blocked by Example Corp\)",
    ),
    "403 without a reason": (Reply(403, b""), r"answered 403, without a reason\."),
    "404": (
        failure(404, f"no model m for {KEY}"),
        r"^api\.model=m: .*base_url its address\. 127.*no model m for \(key\)",
    ),
    "400": (
        failure(400, "temperature must be 1"),
        r"^api\.model=m: expected a model and settings .*400: temperature must be 1",
    ),
    "400 of another kind": (
        Reply(400, {"detail": "pinned to n"}),
        r"^api\.model=m: expected a model .*400: pinned to n$",
    ),
    "404 of another address": (
        Reply(404, b"404 page not found"),
        r"^api\.base_url=http://127\.0\.0\.1:\d+/v1: expected the address of an endpoint\. .*404: 404 page not found",
    ),
    "422 of FastAPI": (
        Reply(422, {"detail": [{"loc": ["body", "seed"], "msg": "Extra inputs are not permitted", "type": "extra"}]}),
        r"^api\.model=m: .*422: Extra inputs are not permitted",
    ),
    "302": (
        Reply(302, headers={"Location": "http://127.0.0.1:9/login?to=x"}),
        r"^api\.base_url=127.*: it is elsewhere \(http://127\.0\.0\.1:9/login\)\.",
    ),
    "402": (failure(402, "pay"), r"^api\.api_key_env=A_KEY: expected a key with credit left.*402: pay"),
    "no credit, as Anthropic says it": (
        failure(400, "Your credit balance is too low to access the API."),
        r"^api\.api_key_env=A_KEY: expected a key with credit left.*too low",
    ),
    "an error that came with 200": (
        Reply(body={"error": {"message": "No endpoints found that support this model", "code": 404}}),
        r"^api\.model=m: .*answered 200 with the error 404: No endpoints found that support this model",
    ),
    "an error in the first choice": (
        Reply(body={"choices": [{"error": {"message": "no such key", "code": "invalid_api_key"}}]}),
        r"^api\.api_key_env=A_KEY: .*answered 200 with the error 401: no such key",
    ),
}


@pytest.mark.parametrize(("reply", "line"), STOPS.values(), ids=STOPS)
def test_what_no_retry_can_mend_stops_at_once_and_what_is_on_its_way_is_kept(reply, line):
    def behave(asked, server):
        return reply if number(asked) == 7 else Reply(after=0.2)

    with ChatServer(behave) as server:
        asker = Kept()
        with pytest.raises(UserError, match=line) as stopped:
            asked_of(server, asker=asker)
        assert KEY not in str(stopped.value) and "\n" not in str(stopped.value)
        assert len(server.log) == 8 and sorted(asker.answers) == list(range(7))


def test_an_error_of_the_programme_stops_at_once():
    def follow(question, answer):
        raise TypeError("a mistake of ours")

    with ChatServer() as server, pytest.raises(TypeError, match="a mistake of ours"):
        asked_of(server, asker=Kept(follow))
    assert len(server.log) <= 8


def test_an_asker_may_have_a_question_wait_for_what_is_on_its_way_and_may_stop_all():
    class Careful(Kept):
        now = 0

        def before(self, question):
            if question.key == 30:
                raise UserError("enough")
            may = self.now < 2
            self.now += may
            return may

        def answered(self, question, answer):
            self.now -= 1
            return super().answered(question, answer)

    asker = Careful()
    with ChatServer(latency=0.02) as server, pytest.raises(UserError, match="enough"):
        asked_of(server, asker=asker)
    assert len(asker.answers) == 30 and server.most_at_once == 2


FINAL = {
    "filtered": (FILTERED, "content_filter"),
    "filtered by another": (failure(403, "It violates our content policy.", 403), "content_filter"),
    "filtered answer": (Reply(body=completion(None, "content_filter")), "content_filter"),
    "too long": (failure(400, "maximum context length is 10", "context_length_exceeded"), "too_long"),
    "too long for llama.cpp": (failure(400, "the request exceeds the available context size"), "too_long"),
    "larger than the limit": (failure(429, "Request too large for m on tokens per min"), "too_long"),
    "only thought": (Reply(body=completion(None, "length")), "length"),
    "refused": (
        Reply(body={"choices": [{"message": {"content": None, "refusal": "I will not."}, "finish_reason": "stop"}]}),
        "refusal",
    ),
}


@pytest.mark.parametrize(("reply", "finish"), FINAL.values(), ids=FINAL)
def test_what_is_filtered_refused_or_too_long_is_an_answer_without_a_text(reply, finish):
    def follow(question, answer):
        if answer.text is None:
            assert answer.finish == finish
            return Question(question.key, {**question.body, "seed": 1}, question.tokens)

    def behave(asked, server):
        return reply if number(asked) % 20 == 0 and "seed" not in asked.body else None

    with ChatServer(behave) as server:
        asker = asked_of(server, asker=Kept(follow))
        assert len(asker.answers) == N and len(server.log) == N + 2


def test_an_answer_may_come_in_parts_and_with_halves_of_characters():
    parts = completion([{"type": "text", "text": "One "}, {"type": "image"}, {"type": "text", "text": "two."}])
    assert asking.read_answer(str(parts).replace("'", '"').replace("None", "null").encode()).text == "One two."
    odd = b'{"choices": [{"message": {"content": "a \\ud83d b \\ud83d\\ude00"}}], "usage": {"prompt_tokens": "x"}}'
    answer = asking.read_answer(odd)
    assert answer.text == "a \ufffd b \U0001f600" and answer.finish == "stop"
    assert answer.prompt_tokens is None


def test_an_interrupt_ends_it_at_once_and_leaves_no_task():
    def behave(asked, server):
        return Reply(after=30) if number(asked) > 3 else None

    asker = Kept()

    async def interrupted(server):
        given = iter([questions()]), [Endpoint(server.url, KEY, "A_KEY")], limits(timeout=60), asker
        task = asyncio.create_task(asking.Asking(*given, asking.chat).run())
        while len(asker.answers) < 4:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return len(asyncio.all_tasks())

    with ChatServer(behave) as server:
        start = time.monotonic()
        assert asyncio.run(interrupted(server)) == 1
        assert time.monotonic() - start < 5


def test_tokens_are_estimated_from_the_bytes():
    assert tokens_of([{"role": "user", "content": "word " * 80}]) == 108
    assert tokens_of([]) == 0


def test_questions_are_made_as_they_are_needed_and_an_error_in_making_one_keeps_what_was_asked():
    made, ahead = [], []

    def blocks(server):
        for question in questions(60):
            ahead.append(len(made) - len(server.answered))
            made.append(question)
            yield [question]
            yield []
        raise UserError("no more")

    asker = Kept()
    with ChatServer(latency=0.01) as server, pytest.raises(UserError, match="no more"):
        ask(blocks(server), [Endpoint(server.url, KEY, "A_KEY")], limits(concurrency=4), asker)
    assert len(server.answered) == len(asker.answers) >= 60 - 12 - 4
    assert max(ahead) <= 3 * 4 + 4  # two that wait for each on its way


@pytest.mark.parametrize(
    "said",
    [
        "x" * 290 + KEY,
        f"Incorrect key {KEY[:12]}... given",
        f"Incorrect key: {KEY[:4]}****{KEY[-8:]}",
        f"header Authorization: Bearer {KEY}\nwas refused",
        f"Bearer {KEY[::-1]} and sk-proj-abcdefgh1234 of another",
    ],
)
def test_a_key_is_in_no_part_of_what_an_endpoint_said(said):
    shown = endpoints.shortened(said, KEY)
    assert len(shown) <= 300 and "\n" not in shown
    assert KEY[:8] not in shown and KEY[-8:] not in shown and KEY[::-1] not in shown and "abcdefgh1234" not in shown


ALWAYS = {
    "an error without a code": (
        Reply(body={"error": {"message": "Provider returned error"}}),
        "Provider returned error",
    ),
    "a call of a tool": (Reply(body=completion(None, "tool_calls")), "finish_reason tool_calls"),
    "an abort": (Reply(body=completion("My par", "abort")), "finish_reason abort"),
    "no choices": (Reply(body={"choices": []}), "no answer"),
    "choices of null": (Reply(body={"choices": None, "message": "nothing here"}), "nothing here"),
    "a message of null": (Reply(body={"choices": [{"message": None}]}), "no answer"),
    "null": (Reply(body=b"null"), "no answer: null"),
    "a page": (Reply(body=b"<!DOCTYPE html><title>Sign in</title>"), r"a web page \(Sign in\)"),
    "a stream": (Reply(body=b'data: {"choices": []}\n\n'), "a stream, not one answer: data:"),
    "an error as the text": (Reply(body='{"error": {"message": "upstream is gone"}}'), "upstream is gone"),
}


@pytest.mark.parametrize(("reply", "words"), ALWAYS.values(), ids=ALWAYS)
def test_an_endpoint_that_says_200_and_never_answers_is_given_up_in_seconds_with_its_words(reply, words, monkeypatch):
    monkeypatch.setattr("dpsyn.language.pace.UNREAD_PATIENCE", 0.3)
    with ChatServer(lambda *_: reply) as server:
        with pytest.raises(UserError, match=rf"^api\.base_url=127.*{words}.*says 200 to every request") as stopped:
            asked_of(server, patience=600, retries=100)
        assert "\n" not in str(stopped.value) and "api.patience" not in str(stopped.value)
        with pytest.raises(UserError, match=rf"^api\.base_url=127.*answers\. The last of.*{words}"):
            ping([Endpoint(server.url, KEY, "A_KEY")], limits(), questions(1)[0].body)


def test_a_long_silence_is_said_once_with_the_last_words_of_the_endpoint(monkeypatch, caplog):
    monkeypatch.setattr("dpsyn.language.pace.SILENCE", 0.1)
    line = pytest.raises(UserError, match=r"status 503: the model is loading.*api\.patience=1 s")
    with ChatServer(lambda *_: failure(503, "the model is loading")) as server, caplog.at_level("WARNING"), line:
        asked_of(server, patience=1, retries=100)
    assert caplog.text.count("gives no answer (status 503: the model is loading)") == 1


def test_a_ping_is_one_request_and_fails_in_seconds_with_what_is_to_blame():
    def reached(behave, *more):
        with ChatServer(behave) as server:
            heard = ping([Endpoint(server.url, KEY, "A_KEY"), *more], limits(timeout=0.3), questions(1)[0].body)
            return heard, len(server.log)

    assert reached(None)[1] == 1
    assert reached(lambda *_: failure(429, "slow down"))[1] == 1  # it has too much to do, and is there
    assert reached(lambda *_: FILTERED)[1] == 1
    assert reached(lambda asked, server: failure(503) if len(server.log) < 3 else None)[1] == 3
    with pytest.raises(UserError, match=r"^api\.api_key_env=A_KEY: .*401: no"):
        reached(lambda *_: failure(401, "no"))
    with pytest.raises(UserError, match=r"^api\.base_url=.*The last of few attempts: status 500: CUDA error\.$"):
        reached(lambda *_: failure(500, "CUDA error"))
    with pytest.raises(UserError, match=r"^api\.base_url=.*timed out"):
        reached(lambda *_: Reply(after=3))
    with ChatServer() as gone:
        pass
    with pytest.raises(UserError, match=r"^api\.base_url=127.*: expected an endpoint that can be reached"):
        ping([Endpoint(gone.url, KEY, "A_KEY")], limits(), {})
    assert reached(None, Endpoint(gone.url, KEY, "A_KEY"))[1] == 1  # of two, one is enough


SURROUNDINGS = [
    ({"ALL_PROXY": "socks5://127.0.0.1:9"}, r"^ALL_PROXY=socks5://127\.0\.0\.1:9: .*aiohttp-socks"),
    ({"all_proxy": "socks://u:secret@127.0.0.1:9/"}, r"^all_proxy=socks://127\.0\.0\.1:9/: expected the address of an"),
    ({"HTTP_PROXY": "http://u:secret@127.0.0.1:99999"}, r"^HTTP_PROXY=http://127\.0\.0\.1:99999: expected the address"),
    ({"HTTP_PROXY": "127.0.0.1:port"}, r"^HTTP_PROXY=http://127\.0\.0\.1:port: expected the address of an http proxy"),
    ({"HTTP_PROXY": "http://127.0.0.1:9"}, r"^HTTP_PROXY=http://127\.0\.0\.1:9: .*NO_PROXY=127\.0\.0\.1 goes past it"),
    ({"SSL_CERT_FILE": "/nowhere.pem"}, r"^SSL_CERT_FILE=/nowhere\.pem: expected a file of certificates"),
    ({"SSL_CERT_FILE": __file__}, r"^SSL_CERT_FILE=.*: expected a file of certificates"),
]


@pytest.mark.parametrize(("variables", "line"), SURROUNDINGS, ids=lambda value: str(value)[:20])
def test_a_variable_of_the_environment_that_is_in_the_way_is_named(variables, line, monkeypatch):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with ChatServer() as server, pytest.raises(UserError, match=line) as stopped:
        ping([Endpoint(server.url, KEY, "A_KEY")], limits(), questions(1)[0].body)
    assert "\n" not in str(stopped.value) and "secret" not in str(stopped.value)
    monkeypatch.setenv("NO_PROXY", "localhost,127.0.0.1")
    if "HTTP_PROXY" in variables:
        with ChatServer() as server:
            ping([Endpoint(server.url, KEY, "A_KEY")], limits(), questions(1)[0].body)


def test_a_proxy_gets_every_request_with_its_password_which_is_in_no_line(monkeypatch):
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    with ChatServer(lambda asked, server: None if asked.body else Reply(407, b"")) as server:
        monkeypatch.setenv("HTTP_PROXY", f"u:secret@127.0.0.1:{server.port}")
        monkeypatch.setenv("HTTPS_PROXY", f"http://u:secret@127.0.0.1:{server.port}")
        asker = Kept()
        ask([questions(6)], [Endpoint("http://a.invalid/v1", KEY, "A_KEY")], limits(concurrency=2), asker)
        assert len(asker.answers) == len(server.log) == 6
        assert {asked.path for asked in server.log} == {"http://a.invalid/v1/chat/completions"}
        told = base64.b64encode(b"u:secret").decode()
        assert {asked.headers["proxy-authorization"] for asked in server.log} == {f"Basic {told}"}
        assert {asked.key for asked in server.log} == {KEY}
        with pytest.raises(
            UserError, match=r"^HTTPS_PROXY=http://127.*a proxy that leads to a.invalid.*407"
        ) as stopped:
            ping([Endpoint("https://a.invalid/v1", KEY, "A_KEY")], limits(), questions(1)[0].body)
        assert "secret" not in str(stopped.value) and told not in str(stopped.value)
        assert all(KEY not in str(asked.headers) for asked in server.log[6:])
    for past in ("*", "x, *.invalid", ".invalid", "invalid", "A.invalid", "a.invalid:80"):
        monkeypatch.setenv("NO_PROXY", past)
        assert endpoints.proxy_for(Endpoint("http://a.invalid:80/v1", None, None)) is None
    for not_past in ("", "b.invalid", "nvalid", "a.invalid:81", "a.invalid.b"):
        monkeypatch.setenv("NO_PROXY", not_past)
        assert endpoints.proxy_for(Endpoint("http://a.invalid:80/v1", None, None)) == (
            "HTTP_PROXY",
            f"http://127.0.0.1:{server.port}",
        )


def test_a_name_and_a_password_in_the_address_are_sent_as_such_and_long_heads_are_read():
    with ChatServer(lambda *_: Reply(headers={"X-Policy": "a" * 20_000})) as server:
        ping([Endpoint(server.url.replace("//", "//user:p%40w@"), None, None)], limits(), questions(1)[0].body)
    (asked,) = server.log
    assert asked.headers["authorization"] == "Basic " + base64.b64encode(b"user:p@w").decode()
    assert asked.headers["host"] == f"127.0.0.1:{server.port}" and asked.path == "/v1/chat/completions"


def test_https_that_nobody_speaks_is_said_at_once():
    with (
        ImageServer() as server,
        pytest.raises(UserError, match=r"^api\.base_url=127.*does not speak https: give http://"),
    ):
        ping([Endpoint(server.url.replace("http:", "https:"), KEY, "A_KEY")], limits(), {})


CERTIFICATE = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj"]


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes a certificate with openssl")
def test_a_certificate_that_nobody_signed_is_said_at_once_and_may_be_trusted(tmp_path, monkeypatch):
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    more = ["/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-keyout", key, "-out", certificate]
    subprocess.run([*CERTIFICATE, *more], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with ChatServer(tls=context) as server:
        there = [Endpoint(server.url.replace("127.0.0.1", "localhost"), KEY, "A_KEY")]
        with pytest.raises(
            UserError, match=r"certificate that this machine trusts\. \(self.signed.*SSL_CERT_FILE=FILE"
        ):
            ping(there, limits(), questions(1)[0].body)
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        ping(there, limits(), questions(1)[0].body)
        assert len(server.log) == 1


@pytest.mark.parametrize(
    ("address", "path"),
    [
        ("/v1", "/v1/chat/completions"),
        ("/v1//", "/v1/chat/completions"),
        ("/v1/chat/completions", "/v1/chat/completions"),
        ("/v1/chat/completions/", "/v1/chat/completions"),
        ("", "/chat/completions"),
        ("/x/v1?api-version=2024-10-21", "/x/v1/chat/completions?api-version=2024-10-21"),
        ("/v1/chat/completions?api-version=2024-10-21&a=b", "/v1/chat/completions?api-version=2024-10-21&a=b"),
    ],
)
def test_an_address_may_end_in_a_slash_a_query_or_the_path_of_a_request(address, path):
    with ChatServer() as server:
        ping([Endpoint(server.url.removesuffix("/v1") + address, KEY, "A_KEY")], limits(), questions(1)[0].body)
        assert [asked.path for asked in server.log] == [path]
        assert server.log[0].headers.get("api-key", KEY) == KEY and ("api-key" in server.log[0].headers) == (
            "?" in path
        )


def test_what_is_no_address_is_said_before_anything_is_asked():
    for address in (
        *(
            "localhost:80",
            "ftp://x/v1",
            "http://",
            "http:///v1",
            "http://x:99999/v1",
            "http://x:80x/v1",
            "http://x:0/v1",
        ),
        *("http://a b/v1", "http://x/v1#part", "http://[::1/v1", "http://" + "a" * 70 + "/v1", " "),
    ):
        with pytest.raises(UserError, match=r"^api\.base_url=.*: expected an address") as stopped:
            endpoints.check_address(address)
        assert "\n" not in str(stopped.value)
    for address in (None, "http://x", "https://x:8443/v1/", "http://[::1]:80/v1", " http://user:pw@x/v1?a=b "):
        endpoints.check_address(address)
    with pytest.raises(UserError) as stopped:
        endpoints.check_address("http://user:secret@x:99999/v1")
    assert "secret" not in str(stopped.value)
    assert "secret" not in Endpoint("http://user:secret@x:99/v1", None, None).host


@pytest.mark.parametrize(
    "key", ["sk-a\nb", "sk a", "sk\u2013abc", "sk-\u201cabc\u201d", "sk-a\x00b", "  \n ", "'sk-abc'"]
)
def test_what_is_no_key_is_said_and_not_shown(key, monkeypatch):
    if "\0" in key:
        return  # no variable can hold it
    monkeypatch.setenv("A_KEY", key)
    with pytest.raises(UserError, match=r"^api\.api_key_env=A_KEY: expected") as stopped:
        endpoints.key_in("A_KEY")
    assert "sk" not in str(stopped.value) and "\n" not in str(stopped.value)
    monkeypatch.setenv("A_KEY", f" {KEY}\r\n")
    assert endpoints.key_in("A_KEY") == KEY and endpoints.key_in(None) is None


@pytest.mark.parametrize(
    ("reason", "finish"),
    [
        *((reason, "stop") for reason in ("stop", "STOP", "eos", "eos_token", "end_turn", "stop_sequence", "COMPLETE")),
        *((reason, "stop") for reason in (None, "")),
        *((reason, "length") for reason in ("length", "MAX_TOKENS", "max_output_tokens", "model_length", "limit")),
        *((reason, "content_filter") for reason in ("content_filter", "SAFETY", "RECITATION", "ERROR_TOXIC")),
        ("refusal", "refusal"),
        *(
            (reason, None)
            for reason in ("error", "abort", "tool_calls", "function_call", "insufficient_system_resource")
        ),
        *((reason, None) for reason in ("cancelled", "OTHER", "load", 7, {"a": 1}, "unheard of")),
    ],
)
def test_an_answer_is_whole_only_where_the_endpoint_says_so(reason, finish):
    content = json.dumps(completion("A text.", reason)).encode()
    if finish is None:
        with pytest.raises(ValueError, match="no whole answer"):
            asking.read_answer(content)
    else:
        answer = asking.read_answer(content)
        assert answer.finish == finish and answer.text == ("A text." if finish in ("stop", "length") else None)


PARTS = [
    ([{"type": "text", "text": None}, {"type": "text", "text": "One."}], "One."),
    ([None, "One ", {"text": "two."}, {"type": None, "text": "!"}], "One two.!"),
    ([{"type": "thinking", "thinking": [{"type": "text", "text": "Hm."}]}, {"type": "text", "text": "One."}], "One."),
    ([{"type": "reasoning", "text": "Hm."}, {"type": "output_text", "text": "One."}], "One."),
    ([{"type": "text", "text": {"value": "One.", "annotations": []}}], "One."),
    ({"type": "text", "text": "One."}, "One."),
    ("One.", "One."),
    ([{"type": "text", "text": None}], None),
    ([], None),
    (7, None),
]


@pytest.mark.parametrize(("content", "text"), PARTS)
def test_of_the_parts_of_a_message_the_texts_alone_are_taken(content, text):
    if text is None:
        with pytest.raises(ValueError, match="without a text"):
            asking.read_answer(json.dumps(completion(content)).encode())
    else:
        assert asking.read_answer(json.dumps(completion(content)).encode()).text == text


def test_reasoning_in_a_field_of_its_own_is_not_the_answer():
    for name in ("reasoning_content", "reasoning", "thinking"):
        body = completion(None)
        body["choices"][0]["message"][name] = "The user wants a mail."
        assert asking.read_answer(json.dumps(body).encode()) == asking.Answer(None, "reasoning", 20, 10)
        body["choices"][0]["message"]["content"] = "A mail."
        assert asking.read_answer(json.dumps(body).encode()).text == "A mail."


def test_nothing_is_asked_where_there_is_no_question():
    ask([], [], limits(), Kept())
    ask([[], []], [], limits(), Kept())
