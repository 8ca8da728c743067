"""The api chat, against an endpoint on the loopback: every row filled, nothing asked or paid for twice."""

import logging
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from chat_server import FILTERED, ChatServer, Reply, completion, failure, words

from dpsyn.api import Usage
from dpsyn.api.chat import Chat
from dpsyn.build import config_folder
from dpsyn.errors import UserError
from dpsyn.files import answers_cache
from dpsyn.language import asking
from dpsyn.language.answers import Answers, answer_key
from dpsyn.language.endpoints import DEFAULT_URL, Endpoint, address
from dpsyn.language.prompts import Prompts
from dpsyn.population import Samples, take

KEY = "sk-a-key-that-nobody-may-see"
N = 40
LABELS = [{"city": f"city{i % 5}"} for i in range(N)]
SEEDS = np.random.default_rng(0).integers(0, 2**64, N, np.uint64)
FILE = {
    "generate": {"system": "You write.", "user": "Write about {city}, {style}."},
    "vary": {"user": "Fill in, {style}: {masked_sample}"},
    "words": {"style": [f"style{i}" for i in range(200)]},
}
PROMPTS = {
    "file": FILE,
    "description": None,
    "typical_words": None,
    "generate_tokens": 64,
    "word_std": 5,
    "min_words": 5,
    "tokens_per_word": 2,
    "max_tokens": 100,
    "max_parent_words": None,
    "tokenizer": None,
    "keep_lines": False,
}


@pytest.fixture(autouse=True)
def key_and_haste(monkeypatch):
    monkeypatch.setenv("CHAT_KEY", KEY)
    monkeypatch.setattr("dpsyn.language.pace.PAUSE", 0.02)
    monkeypatch.setattr("dpsyn.language.pace.LONGEST_PAUSE", 0.1)


def part(server, **settings):
    plain = yaml.safe_load((config_folder() / "api" / "chat.yaml").read_text())
    del plain["_target_"]
    url = server.url if isinstance(server, ChatServer) else server
    given = {"model": "m", "prompts": Prompts(**PROMPTS), "base_url": url, "api_key_env": "CHAT_KEY", "concurrency": 8}
    return Chat(**{**plain, **given, "timeout": 5, "patience": 20, "prices": {"m": [1.0, 10.0]}, **settings})


def parents(n=N):
    content = np.empty(n, object)
    content[:] = [f"This is {{parent}} number {i} and it is \"a 'quoted' one\"." for i in range(n)]
    return Samples(content)


def by_style(asked):
    """The number of the style that was drawn."""
    return int(asked.prompt.split("style")[1].split(".")[0].split(":")[0])


def test_every_row_gets_the_answer_to_its_own_prompt_whatever_the_order_of_arrival():
    with ChatServer(lambda asked, server: Reply(after=0.001 + 0.05 * (by_style(asked) % 3))) as server:
        fresh = part(server).generate(LABELS, SEEDS)
        varied = part(server).vary(parents(), LABELS, 0.5, SEEDS)
        assert len(server.log) == 2 * N and server.most_at_once <= 8
    assert fresh.content.dtype == object and fresh.content.shape == (N,) and not fresh.traits
    asked = part("http://x").prompts.generate(LABELS, SEEDS) + part("http://x").prompts.vary(
        list(parents().content), LABELS, 0.5, SEEDS
    )
    said = {str(one.body["messages"]): words(one) for one in server.log}
    assert [*fresh.content, *varied.content] == [said[str([dict(m) for m in one.messages])] for one in asked]


def test_a_request_holds_the_prompt_and_the_parameters_and_nothing_else():
    with ChatServer() as server:
        part(server, top_p=0.5, extra={"reasoning_effort": "low"}).generate(LABELS[:1], SEEDS[:1])
        settings = {"temperature": None, "send_seed": False, "max_tokens_param": "max_completion_tokens"}
        part(server, api_key_env=None, **settings).vary(parents(1), LABELS[:1], 1, SEEDS[:1])
        first, second = server.log
    style = by_style(first)
    assert first.body == {
        "model": "m",
        "messages": [
            {"role": "system", "content": "You write."},
            {"role": "user", "content": f"Write about city0, style{style}."},
        ],
        "max_tokens": 64,
        "temperature": 1.0,
        "top_p": 0.5,
        "seed": int(SEEDS[0]) % 2**31,
        "reasoning_effort": "low",
    }
    assert first.key == KEY and second.key == "none"
    assert set(second.body) == {"model", "messages", "max_completion_tokens"}
    assert second.prompt.split(": ")[1] == " ".join("_" * 11)


def test_a_row_depends_on_its_own_label_parent_and_seed_alone():
    given, order = parents(), np.random.default_rng(1).permutation(N)
    with ChatServer() as server:
        fresh, varied = part(server).generate(LABELS, SEEDS), part(server).vary(given, LABELS, 0.5, SEEDS)
    shuffled = [LABELS[i] for i in order]
    with ChatServer() as server, new_cache():
        api = part(server, concurrency=1)
        assert list(api.generate(shuffled, SEEDS[order]).content) == list(fresh.content[order])
        parts = [
            api.vary(take(given, order[at]), [LABELS[i] for i in order[at]], 0.5, SEEDS[order[at]]).content
            for at in (slice(0, 7), slice(7, 8), slice(8, N))
        ]
        assert list(np.concatenate(parts)) == list(varied.content[order])


class new_cache:
    def __enter__(self):
        folder = answers_cache("answers")
        folder.joinpath("answers.sqlite").rename(folder / "old.sqlite")

    def __exit__(self, *_):
        pass


def test_what_was_answered_once_is_never_asked_again_by_any_copy_of_the_part():
    with ChatServer() as server:
        api = part(server)
        fresh, varied = api.generate(LABELS, SEEDS), api.vary(parents(), LABELS, 0.5, SEEDS)
        assert len(server.log) == 2 * N and api.usage.cached == 0
        server.stop()  # how it asks is not what it asks
        again = part(f"{server.url}/", concurrency=1, api_key_env=None, max_cost=1e-9, timeout=1, retries=0)
        assert list(again.generate(LABELS[3:], SEEDS[3:]).content) == list(fresh.content[3:])
        assert list(again.vary(parents(), LABELS, 0.5, SEEDS).content) == list(varied.content)
        assert again.usage == Usage(cached=2 * N - 3)
        server.start()
        for other in ({"model": "n"}, {"temperature": 0.5}, {"extra": {"k": 1}}):
            part(server, **other).generate(LABELS[:1], SEEDS[:1])
        api.generate(LABELS[:1], SEEDS[1:2])
        assert len(server.log) == 2 * N + 4


def test_answers_are_those_of_an_address_and_a_run_keeps_what_it_was_answered_at_another(caplog):
    with ChatServer() as first, ChatServer(lambda asked, server: Reply(body=words(asked).upper())) as second:
        one = part(first)
        one.resume(Usage(), "run 1")
        fresh = one.generate(LABELS[:20], SEEDS[:20])
        other = part(second).generate(LABELS[:20], SEEDS[:20])
        assert list(other.content) == [text.upper() for text in fresh.content] and len(second.log) == 20
        moved = part(second)
        moved.resume(Usage(), "run 1")
        third = moved.generate(LABELS, SEEDS).content
        assert list(third[:20]) == list(other.content)  # what the address that it asks now has said comes first
        with new_cache():
            elsewhere = part(first)
            elsewhere.resume(Usage(), "run 2")
            kept = elsewhere.generate(LABELS[:20], SEEDS[:20]).content
            gone_on = part(second)
            gone_on.resume(Usage(), "run 2")
            second.log.clear()
            caplog.clear()
            whole = gone_on.generate(LABELS, SEEDS).content
            assert "20 of 40 rows have answers that this run was given before, at another address" in caplog.text
            assert list(whole[:20]) == list(kept) and len(second.log) == N - 20
            assert list(whole[20:]) == list(third[20:])
            stranger = part(second)
            stranger.resume(Usage(), "run 3")
            assert list(stranger.generate(LABELS[:20], SEEDS[:20]).content) == list(other.content)


def test_runs_whose_noise_protects_nobody_share_no_answer_with_those_whose_noise_does():
    for mine, other in (("answers_not_private", "answers"), ("answers", "answers_not_private")):
        with ChatServer() as server:
            part(server, answers_folder=mine).generate(LABELS, SEEDS)
            part(server, answers_folder=other).generate(LABELS, SEEDS)
            part(server, answers_folder=mine).generate(LABELS, SEEDS)
            assert len(server.log) == 2 * N
        assert answers_cache(mine).stat().st_mode & 0o777 == 0o700


def test_the_cache_can_be_filled_beforehand():
    api = part("http://127.0.0.1:9")
    parameters = {"max_tokens": 64, "temperature": 1.0}
    address = Endpoint("http://127.0.0.1:9", None, None).digest
    with Answers() as answers:
        for i, request in enumerate(api.prompts.generate(LABELS, SEEDS)):
            messages = [dict(message) for message in request.messages]
            key = answer_key(address, "m", parameters, messages, int(SEEDS[i]))
            answers.put(key, {"text": f"Text {i}.", "finish": "stop"})
    assert list(api.generate(LABELS, SEEDS).content) == [f"Text {i}." for i in range(N)]


def test_the_key_and_the_address_are_in_no_file_and_in_no_line(caplog, capfd):
    for name in ("openai", "httpx2"):
        logging.getLogger(name).setLevel(logging.DEBUG)  # as OPENAI_LOG=debug does

    def behave(asked, server):
        return failure(401, f"wrong: {KEY}") if len(server.log) > 20 else None

    with caplog.at_level(logging.DEBUG), ChatServer(behave) as server:
        with pytest.raises(UserError, match=r"^api\.api_key_env=CHAT_KEY: expected a key that may use") as stopped:
            part(server).generate(LABELS, SEEDS)
        port = str(server.port)
    for file in answers_cache("answers").rglob("*"):
        content = file.read_bytes() if file.is_file() else b""
        assert KEY.encode() not in content and f":{port}".encode() not in content
    shown = caplog.text + "".join(capfd.readouterr()) + str(stopped.value)
    assert KEY not in shown + repr(part("http://x")) and "Write about" not in shown


def test_a_degree_of_nothing_is_the_parent_itself_and_nothing_is_asked():
    given = parents()
    api = part("http://127.0.0.1:9")
    assert list(api.vary(given, LABELS, 0.0, SEEDS).content) == list(given.content)
    assert api.usage == Usage() and len(api.generate([], SEEDS[:0])) == 0
    assert list(api.adopt(Samples(given.content, {"item": np.arange(N)}), LABELS, SEEDS).traits) == []
    with pytest.raises(UserError, match="api chat: expected texts"):
        api.vary(Samples(np.zeros((2, 4, 4, 3), np.uint8)), LABELS[:2], 0.5, SEEDS[:2])
    with pytest.raises(UserError, match=r"^schedule\.degree=2: expected"):
        api.check_degree(2)


REFUSED = {
    "filtered": FILTERED,
    "filtered answer": Reply(body=completion(None, "content_filter")),
    "refused": Reply(body="I'm sorry, but I can't assist with that request."),
    "empty": Reply(body=" \n "),
}


@pytest.mark.parametrize("reply", REFUSED.values(), ids=REFUSED)
def test_a_row_that_is_refused_is_asked_with_other_words_and_another_seed(reply):
    refused = set()

    def behave(asked, server):
        if asked.body["seed"] in first[::20]:
            refused.add(asked.prompt)
            return reply

    first = [int(seed) % 2**31 for seed in SEEDS]
    with ChatServer(behave) as server:
        fresh = part(server).generate(LABELS, SEEDS)
        assert all(text.startswith("An answer") for text in fresh.content)
        again = [asked for asked in server.log if asked.body["seed"] not in first]
        assert len(server.log) == N + 2 and len(again) == 2
        assert not refused & {asked.prompt for asked in again}
        assert all("city0" in asked.prompt for asked in again)  # of the same label
        assert list(part(server).generate(LABELS, SEEDS).content) == list(fresh.content)
        assert len(server.log) == N + 2  # the row has its answer


def test_a_variation_that_is_always_refused_comes_back_as_its_parent(caplog):
    def behave(asked, server):
        return FILTERED if "number 3 " in asked.prompt or "number 17 " in asked.prompt else None

    given = parents()
    with ChatServer(behave) as server, caplog.at_level(logging.WARNING):
        api = part(server)
        varied = api.vary(given, LABELS, 0.01, SEEDS)
        assert [i for i in range(N) if varied.content[i] == given.content[i]] == [3, 17]
        assert len(server.log) == N + 2 * 2 and api.usage.fallbacks == 2
        assert "api chat: 2 of 40 rows got no answer of use (filtered), come back as their parents" in caplog.text
        assert list(part(server).vary(given, LABELS, 0.01, SEEDS).content) == list(varied.content)
        assert len(server.log) == N + 2 * 2 + 2 * 3  # a refusal is no answer: they are asked again


def test_a_fresh_row_that_is_always_refused_is_a_copy_of_another_one_of_its_label(caplog):
    def behave(asked, server):
        count[asked.prompt.split(",")[0]] = count.get(asked.prompt.split(",")[0], 0) + 1
        return FILTERED if "city3" in asked.prompt and count["Write about city3"] != 2 else None

    count = {}
    with ChatServer(behave) as server, caplog.at_level(logging.WARNING):
        fresh = part(server, attempts=1, max_fallback_share=0.5).generate(LABELS, SEEDS).content
    assert len(set(fresh[3::5])) == 1 and len(set(fresh)) == N - 7
    assert "7 of 40 rows got no answer of use (filtered), are copies of others of their label" in caplog.text

    no_row = pytest.raises(UserError, match="no row of city4 got an answer")
    with ChatServer(lambda asked, server: FILTERED if "city4" in asked.prompt else None) as server, no_row as stopped:
        part(server, model="n", max_fallback_share=0.5).generate(LABELS, SEEDS)
    assert "\n" not in str(stopped.value)


def test_where_too_many_are_refused_it_stops_early():
    with ChatServer(lambda asked, server: FILTERED) as server:
        with pytest.raises(
            UserError, match=r"5 of 40 rows got no answer of use \(filtered\): more than api.max_fallback_share=0.1"
        ):
            part(server, max_fallback_share=0.1, attempts=2).vary(parents(), LABELS, 0.5, SEEDS)
        assert len(server.log) < 2 * N


def test_an_answer_that_is_cut_off_ends_with_its_last_whole_sentence():
    texts = iter(["One. Two! Thr", "No end of a sentence", 'He said "Go." And th'])
    with ChatServer(lambda asked, server: Reply(body=next(texts), finish="length")) as server:
        fresh = part(server, concurrency=1).generate(LABELS[:3], SEEDS[:3]).content
    assert list(fresh) == ["One. Two!", "No end of a sentence", 'He said "Go."']


def test_rows_that_fail_for_good_stand_in_now_and_are_asked_again_another_time():
    def behave(asked, server):
        return failure(500) if "number 3 " in asked.prompt else None

    given = parents()
    with ChatServer(behave) as server:
        varied = part(server, retries=2).vary(given, LABELS, 0.01, SEEDS)
        assert varied.content[3] == given.content[3] and len(server.log) == N + 2
        server.behave = lambda *_: None
        assert part(server).vary(given, LABELS, 0.01, SEEDS).content[3] != given.content[3]
        assert len(server.log) == N + 3


@pytest.mark.parametrize("after", [0, 1.2], ids=["at once", "counting what is on its way"])
def test_it_stops_before_the_cost_is_passed_and_goes_on_with_a_higher_one(after):
    """The server counts 20 + 10 tokens a call: 0.00012 by the prices."""
    with ChatServer(latency=0.02) as server:
        api = part(server, max_cost=0.0025)
        with pytest.raises(UserError, match=r"^api\.max_cost=0\.0025: expected more: 0\.0\d+ are spent") as stopped:
            api.generate(LABELS, SEEDS)
        assert "\n" not in str(stopped.value)
        calls = len(server.log)
        assert api.usage.money == pytest.approx(calls * 0.00012) and api.usage.money <= 0.0025
        assert calls == api.usage.calls >= 10  # the last one may have cost 0.0008 by its bytes and its longest answer
        more = part(server, max_cost=0.0025 + after)
        more.resume(api.usage, None)
        if after:
            assert len(set(more.generate(LABELS, SEEDS).content)) == N and len(server.log) == N
            assert more.usage == Usage(N, calls, 20 * N, 10 * N, pytest.approx(0.0048))
        else:
            with pytest.raises(UserError, match=r"api\.max_cost"):
                more.generate(LABELS, SEEDS)
            assert len(server.log) == calls


def test_what_timed_out_counts_as_paid_for():
    with ChatServer(lambda *_: Reply(after=5)) as server:
        api = part(server, timeout=0.2, max_cost=0.0014, retries=100, concurrency=1)
        with pytest.raises(UserError, match=r"api\.max_cost=0\.0014: expected more: 0\.000\d+ are spent"):
            api.generate(LABELS, SEEDS)
        assert len(server.log) == 1 and api.usage.calls == 0


def test_usage_counts_calls_tokens_money_and_what_came_from_the_cache():
    with ChatServer(lambda asked, server: Reply(body=completion("A text of eight.", usage=False))) as server:
        api = part(server)
        api.generate(LABELS[:4], SEEDS[:4])
        prompt = asking.tokens_of(server.log[0].body["messages"])
        assert abs(api.usage.prompt_tokens - 4 * prompt) <= 4 and api.usage.answer_tokens == 4 * 4
        assert api.usage.money == pytest.approx((api.usage.prompt_tokens + 160) / 1e6)
        api.generate(LABELS[:4], SEEDS[:4])
        assert (api.usage.calls, api.usage.cached) == (4, 4)
        assert part(server, prices={}).usage.money is None


def test_the_estimate_is_made_of_declared_lengths_and_limits():
    api = part(["http://x", "http://y"], requests_per_minute=60, tokens_per_minute=60_000)
    (p, a), (q, b) = api.prompts.lengths(LABELS[:5], "generate"), api.prompts.lengths(LABELS[:5], "vary")
    whole = api.estimate(LABELS[:5], 100, 300)
    assert (whole.calls, whole.prompt_tokens, whole.answer_tokens) == (
        400,
        round(100 * p + 300 * q),
        round(100 * a + 300 * b),
    )
    assert whole.money == pytest.approx((100 * p + 300 * q + 10 * (100 * a + 300 * b)) / 1e6)
    assert whole.seconds == 200  # two endpoints
    assert part("http://x").estimate(LABELS, 1, 0).seconds is None
    assert api.estimate(LABELS, 0, 0) == Usage(seconds=0)


def test_the_watcher_hears_of_every_row_once():
    heard = []
    with ChatServer(lambda asked, server: FILTERED if "number 3 " in asked.prompt else None) as server:
        api = part(server)
        api.vary(parents(10), LABELS[:10], 0.01, SEEDS[:10])
        with api.watched(heard.append):
            api.vary(parents(), LABELS, 0.01, SEEDS)
            assert sum(heard) == N
            api.vary(parents(), LABELS, 0.0, SEEDS)
        assert sum(heard) == 2 * N
        api.generate(LABELS, SEEDS)
    assert sum(heard) == 2 * N


def test_it_works_in_a_thread_and_in_a_copy_of_the_part():
    with ChatServer() as server:
        api = pickle.loads(pickle.dumps(part(server)))
        texts = []
        thread = threading.Thread(target=lambda: texts.extend(api.generate(LABELS, SEEDS).content))
        thread.start()
        thread.join()
    assert len(set(texts)) == N and api == part(server)


RUN = """
import sys
import numpy as np
sys.path[:0] = [{tests!r}, {tests!r} + "/api"]
from test_chat import LABELS, SEEDS, part
print("asks", flush=True)
part({url!r}, concurrency=8).generate(LABELS, SEEDS)
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT], ids=["killed", "interrupted"])
def test_a_run_that_is_cut_off_asks_for_nothing_twice(how):
    def behave(asked, server):
        return Reply(after=60) if len(server.log) > 15 else None

    with ChatServer(behave) as server:
        code = RUN.format(tests=str(Path(__file__).parents[1]), url=server.url)
        options = {"env": {**os.environ, "CHAT_KEY": KEY}, "stderr": subprocess.PIPE, "text": True}
        restore = lambda: signal.signal(signal.SIGINT, signal.default_int_handler)  # noqa: E731
        with subprocess.Popen(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, preexec_fn=restore, **options
        ) as run:
            assert run.stdout.readline() == "asks\n"
            end = time.monotonic() + 30
            while (len(server.answered) < 15 or len(server.log) < 23) and time.monotonic() < end:
                time.sleep(0.05)
            time.sleep(0.3)
            start = time.monotonic()
            run.send_signal(how)
            said = run.communicate(timeout=20)[1]
            assert time.monotonic() - start < 10
        assert said.count("KeyboardInterrupt") <= 2 and "never retrieved" not in said and "Write about" not in said
        first = {asked.prompt for asked in server.answered}
        assert len(first) == 15
        server.behave = lambda *_: None
        server.log.clear()
        assert len(set(part(server).generate(LABELS, SEEDS).content)) == N
        assert len(server.log) == N - 15 and not first & {asked.prompt for asked in server.log}


def test_with_the_endpoint_down_it_stops_with_one_line_and_goes_on_when_it_is_back():
    def behave(asked, server):
        if len(server.answered) >= 12 and server.server.is_serving():
            server.loop.create_task(server._stop())

    with ChatServer(behave) as server:
        with pytest.raises(
            UserError, match=r"^api\.base_url=127.*api\.patience=0\.3 s\. .*same command again to go on\.$"
        ):
            part(server, patience=0.3).generate(LABELS, SEEDS)
        kept = len(server.answered)
        assert 12 <= kept < N
        server.behave = lambda *_: None
        server.start()
        assert len(set(part(server).generate(LABELS, SEEDS).content)) == N
        assert len(server.answered) == N


WRONG = [
    ({"model": 3}, r"^api\.model=3"),
    ({"prompts": {}}, r"^api\.prompts="),
    ({"temperature": -1}, r"^api\.temperature=-1"),
    ({"top_p": 0}, r"^api\.top_p=0"),
    ({"extra": {"n": 2}}, r"^api\.extra=n"),
    ({"extra": {"k": {1, 2}}}, r"^api\.extra="),
    ({"send_seed": 1}, r"^api\.send_seed=1"),
    ({"max_tokens_param": "tokens"}, r"^api\.max_tokens_param=tokens"),
    ({"base_url": 7}, r"^api\.base_url=7"),
    ({"api_key_env": "sk-abc"}, r"^api\.api_key_env=\(not shown\)"),
    ({"concurrency": 0}, r"^api\.concurrency=0"),
    ({"retries": -1}, r"^api\.retries=-1"),
    ({"attempts": 1.5}, r"^api\.attempts=1.5"),
    ({"requests_per_minute": 0}, r"^api\.requests_per_minute=0"),
    ({"max_cost": "5"}, r"^api\.max_cost=5"),
    ({"timeout": float("inf")}, r"^api\.timeout=inf"),
    ({"max_fallback_share": 2}, r"^api\.max_fallback_share=2"),
    ({"prices": {"m": [1]}}, r"^api\.prices=\{m: \[1\]\}"),
    ({"prices": None}, r"^api\.prices="),
]


@pytest.mark.parametrize(("settings", "line"), WRONG, ids=[next(iter(settings)) for settings, _ in WRONG])
def test_a_wrong_setting_is_one_line(settings, line):
    with pytest.raises(UserError, match=line):
        part("http://x", **settings)


MISSING = [
    ({}, nullcontext()),
    ({"model": None}, pytest.raises(UserError, match=r"^api\.model=null")),
    ({"base_url": "localhost:80"}, pytest.raises(UserError, match=r"^api\.base_url=localhost:80")),
    ({"base_url": []}, pytest.raises(UserError, match=r"^api\.api_key_env=CHAT_KEY")),
    ({"base_url": ["http://x"] * 3, "api_key_env": ["A", "B"]}, pytest.raises(UserError, match="each of the 3")),
    ({"api_key_env": "NO_SUCH"}, nullcontext()),  # a plan needs no key
    ({"base_url": "http://x:80x/v1"}, pytest.raises(UserError, match=r"^api\.base_url=http://x:80x/v1: .*port")),
    ({"max_cost": 1, "model": "x"}, pytest.raises(UserError, match=r"^api\.max_cost=1: .*\+api\.prices=\{x: ")),
]


@pytest.mark.parametrize(("settings", "outcome"), MISSING)
def test_what_is_missing_is_said_before_anything_is_asked(settings, outcome):
    with outcome:
        part("http://x", **settings).check()


def test_a_key_that_is_not_there_is_said_before_anything_is_sent(monkeypatch):
    monkeypatch.setenv("BROKEN", "sk-a\nb")
    with ChatServer() as server:
        for name, line in (
            ("NO_SUCH", r"^api\.api_key_env=NO_SUCH: .*env=null\.$"),
            ("BROKEN", "BROKEN: .*a line break"),
        ):
            for ask in (lambda api: api.ping("generate"), lambda api: api.generate(LABELS, SEEDS)):
                with pytest.raises(UserError, match=line):
                    ask(part(server, api_key_env=name))
        assert not server.log


TOO_LARGE = "'max_tokens' is too large: 64. This model's maximum context length is 96 tokens."


def test_a_ping_has_the_parameters_of_the_requests_to_come_and_counts_as_one():
    with ChatServer() as server:
        api = part(server, extra={"reasoning_effort": "low"}, top_p=0.5)
        api.ping("generate")
        (asked,) = server.log
        assert asked.prompt == "Reply with the word OK." and asked.body["max_tokens"] == 64
        assert (asked.body["top_p"], asked.body["reasoning_effort"], asked.body["seed"]) == (0.5, "low", 0)
        assert api.usage == Usage(1, 0, 20, 10, pytest.approx(0.00012))
    with ChatServer(lambda *_: failure(400, TOO_LARGE)) as server:
        with pytest.raises(
            UserError, match=r"^api\.prompts\.generate_tokens=64: .* 127.* says: 'max_tokens' is too large"
        ):
            part(server).ping("generate")
        with pytest.raises(UserError, match=r"^api\.max_cost=1e-09: expected more"):
            part(server, max_cost=1e-9).ping("generate")
        assert len(server.log) == 1


def test_a_refusal_of_the_server_is_quoted_and_the_same_command_asks_again():
    with ChatServer(lambda *_: failure(400, TOO_LARGE)) as server:
        with pytest.raises(
            UserError, match=r"too long for the model.*says: 'max_tok.*Lower api\.prompts\.generate_tokens"
        ):
            part(server).generate(LABELS, SEEDS)
        server.behave = lambda *_: None
        assert len(set(part(server).generate(LABELS, SEEDS).content)) == N


NOT_KEPT = {
    "reasoning": (Reply(body="<think>The user wants"), r"\(all of it reasoning\).*Turn reasoning off"),
    "reasoning in a field": (
        Reply(body={"choices": [{"message": {"content": None, "reasoning": "Hm."}}]}),
        r"\(all of it reasoning\).*Turn reasoning off",
    ),
    "empty": (Reply(body=""), r"\(empty\)"),
    "all tokens thought": (Reply(body=completion(None, "length")), r"\(empty\)"),
}


@pytest.mark.parametrize(("reply", "why"), NOT_KEPT.values(), ids=NOT_KEPT)
def test_an_answer_of_no_use_is_not_kept_for_a_server_that_was_started_again(reply, why):
    with ChatServer(lambda *_: reply) as server:
        with pytest.raises(UserError, match=rf"got no answer of use {why}"):
            part(server).generate(LABELS, SEEDS)
        server.behave = lambda *_: None
        assert len(set(part(server).generate(LABELS, SEEDS).content)) == N


def test_no_variable_of_the_environment_sends_requests_elsewhere(monkeypatch):
    with ChatServer() as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        api = part(None)
        assert [endpoint.url for endpoint in api.endpoints()] == [DEFAULT_URL]
        url = address(api.endpoints()[0], "chat/completions")
        assert str(url) == "https://api.openai.com/v1/chat/completions"
    two = replace(part("http://x"), api_key_env=["CHAT_KEY", "CHAT_KEY"])
    assert len(two.endpoints()) == 2
