"""The api image_endpoint, against an endpoint on the loopback that really decodes what it is sent."""

import logging
import os
import pickle
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from image_server import ImageServer, Reply, b64, drawn, failure, png

from dpsyn import compose
from dpsyn.api import Usage
from dpsyn.api.image_endpoint import ImageEndpoint
from dpsyn.build import build
from dpsyn.errors import UserError
from dpsyn.files import answers_cache
from dpsyn.language.answers import Answers, answer_key
from dpsyn.population import Samples

KEY = "sk-a-key-that-nobody-may-see"
N = 12
LABELS = [{"animal": f"cat{i}"} for i in range(N)]
SEEDS = np.random.default_rng(0).integers(0, 2**64, N, np.uint64)


@pytest.fixture(autouse=True)
def key_and_haste(monkeypatch):
    monkeypatch.setenv("IMAGE_KEY", KEY)
    monkeypatch.setattr("dpsyn.language.pace.PAUSE", 0.01)
    monkeypatch.setattr("dpsyn.language.pace.LONGEST_PAUSE", 0.1)


def part(server, **settings):
    given = {
        "base_url": server if server is None or isinstance(server, str) else server.url,
        "model": "painter",
        "api_key_env": "IMAGE_KEY",
        "prompts": "a {animal}",
        "vary_with": "edit",
        "edits": ["a little", ["some", "{animal}: some of {prompt}"], "all"],
        "size": "16x16",
        "quality": None,
        "response_format": None,
        "image_size": None,
        "concurrency": 4,
        "requests_per_minute": None,
        "timeout": 5,
        "deadline": 60,
        "patience": 20,
        "retries": 4,
        "max_fallback_share": 0.25,
        "prices": {},
        "max_cost": None,
    }
    return ImageEndpoint(**{**given, **settings})


def expected(labels):
    with_prompt = [type("Asked", (), {"parent": None, "prompt": f"a {label['animal']}"}) for label in labels]
    return np.stack([drawn(asked) for asked in with_prompt])


def parents(n=N, side=16, channels=3):
    content = np.random.default_rng(3).integers(0, 256, (n, side, side, channels), np.uint8)
    return Samples(content, {"prompt": np.array([f"a {LABELS[i]['animal']}" for i in range(n)], object)})


def test_every_row_gets_its_own_answer_in_order_with_many_requests_at_once():
    def slow_first(asked, server):
        time.sleep(0.15 if asked.prompt.endswith("0") else 0.02)

    with ImageServer(slow_first) as server:
        fresh = part(server).generate(LABELS, SEEDS)
    assert fresh.content.dtype == np.uint8 and np.array_equal(fresh.content, expected(LABELS))
    assert list(fresh.traits["prompt"]) == [f"a {label['animal']}" for label in LABELS]
    assert len(server.log) == N and 1 < server.most_at_once <= 4


def test_an_edit_is_made_of_its_parent_and_of_the_instruction_that_the_degree_names():
    given = parents()
    with ImageServer() as server:
        varied = part(server).vary(given, LABELS, 1.0, SEEDS)
        assert np.array_equal(varied.content, given.content // 2 + 1)
        assert list(varied.traits["prompt"]) == list(given.traits["prompt"])
        assert {asked.prompt for asked in server.log} == {"all"}
        for degree, instructions in ((0.01, {"a little"}), (1 / 3, {"a little"}), (0.67, {"all"})):
            server.log.clear()
            part(server).vary(given, LABELS, degree, SEEDS + 1)
            assert {asked.prompt for asked in server.log} <= instructions  # a third and less may be in the cache
        server.log.clear()
        part(server).vary(given, LABELS, 0.5, SEEDS)
        said = {asked.prompt for asked in server.log}
        assert "some" in said and any(words.startswith("cat") and ": some of a cat" in words for words in said)
        server.log.clear()
        assert np.array_equal(part(server).vary(given, LABELS, 0.0, SEEDS).content, given.content) and not server.log


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of variations, by the client
def test_requests_hold_the_prompt_the_parameters_and_the_parent_and_nothing_else(monkeypatch):
    monkeypatch.setenv("OPENAI_ORG_ID", "org-of-another")
    given = parents(2)
    with ImageServer() as server:
        api = part(server, quality="low", response_format="b64_json")
        api.generate(LABELS[:2], SEEDS[:2])
        api.vary(given, LABELS[:2], 1, SEEDS[:2])
        part(server, vary_with="variation", quality="low").vary(given, LABELS[:2], 1, SEEDS[:2])
    generated, edited, varied = server.log[:2], server.log[2:4], server.log[4:]
    assert [asked.path for asked in server.log] == [
        f"/v1/images/{kind}" for kind in ("generations", "edits") for _ in range(2)
    ] + ["/v1/images/variations"] * 2
    settings = {"model": "painter", "size": "16x16", "quality": "low", "response_format": "b64_json"}
    told = sorted((asked.fields for asked in generated), key=lambda fields: fields["prompt"])
    assert told == [{**settings, "prompt": f"a cat{i}", "n": 1} for i in range(2)]
    assert all(asked.fields == {**settings, "prompt": "all", "n": "1"} for asked in edited)
    assert all(asked.fields == {"model": "painter", "size": "16x16", "n": "1"} for asked in varied)
    for pair in (edited, varied):
        assert all(asked.files == {"image": ("parent.png", "image/png")} for asked in pair)
        assert {asked.parent.tobytes() for asked in pair} == {image.tobytes() for image in given.content}
    told = {name for asked in server.log for name in asked.headers if name.startswith("x-stainless")}
    # nothing of this machine
    assert told <= {"x-stainless-retry-count", "x-stainless-read-timeout", "x-stainless-raw-response"}
    assert not any(name.startswith("openai-") for asked in server.log for name in asked.headers)
    assert {asked.headers["authorization"] for asked in server.log} == {f"Bearer {KEY}"}


def test_what_was_answered_once_is_never_asked_again_by_any_copy_of_the_part():
    given = parents()
    with ImageServer() as server:
        api = part(server)
        fresh, varied = api.generate(LABELS, SEEDS), api.vary(given, LABELS, 1, SEEDS)
        assert len(server.log) == 2 * N
        again = part(server, concurrency=1, retries=0, timeout=60)
        assert np.array_equal(again.generate(LABELS[3:], SEEDS[3:]).content, fresh.content[3:])
        assert np.array_equal(again.vary(given, LABELS, 1, SEEDS).content, varied.content)
        assert len(server.log) == 2 * N
        again.generate(LABELS[:1], SEEDS[1:2])  # another seed,
        part(server, model="other").generate(LABELS[:1], SEEDS[:1])  # another model,
        again.vary(Samples(255 - given.content, given.traits), LABELS, 1, SEEDS)  # another parent
        assert len(server.log) == 3 * N + 2
    folder = answers_cache("answers")
    with closing(sqlite3.connect(folder / "answers.sqlite")) as kept:
        rows = kept.execute("SELECT value FROM answers").fetchall()
    assert len(rows) == 3 * N + 2 and all(row.startswith(b"\x89PNG") for (row,) in rows)
    assert folder.stat().st_mode & 0o777 == 0o700
    assert not any(KEY.encode() in file.read_bytes() for file in folder.iterdir())


def test_answers_are_kept_through_a_kill_and_beside_those_of_texts():
    with ImageServer() as server:
        code = (
            "import os, signal, test_image_endpoint as t\n"
            "class Url:\n    url = {url!r}\n"
            "drawn = t.part(Url).generate(t.LABELS, t.SEEDS)\n"
            "os.kill(os.getpid(), signal.SIGKILL)\n"
        )
        folders = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(folders)}
        ended = subprocess.run([sys.executable, "-c", code.format(url=server.url)], env=environment, check=False)
        assert ended.returncode == -signal.SIGKILL and len(server.log) == N
        with Answers() as answers:
            answers.put(answer_key("a text"), {"text": "a", "finish": "stop"})
        assert np.array_equal(part(server).generate(LABELS, SEEDS).content, expected(LABELS))
        assert len(server.log) == N
    with Answers() as answers:
        assert answers.get([answer_key("a text")])


def test_runs_whose_noise_protects_nobody_share_no_answer_with_those_whose_noise_does():
    with ImageServer() as server:
        for folder in ("answers_not_private", "answers", "answers_not_private", "answers"):
            part(server, answers_folder=folder).generate(LABELS, SEEDS)
        assert len(server.log) == 2 * N


def test_answers_are_those_of_an_address():
    with ImageServer() as one, ImageServer() as other:
        for server in (one, other):
            part(server).generate(LABELS, SEEDS)
            assert len(server.log) == N


def test_a_run_that_was_cut_off_goes_on_where_it_was():
    def dies(asked, server):
        return failure(401) if len(server.log) > 5 else None

    with ImageServer(dies) as server:
        with pytest.raises(UserError):
            part(server, concurrency=1).generate(LABELS, SEEDS)
        assert len(server.log) == 6
        server.behave = lambda *_: None
        assert np.array_equal(part(server).generate(LABELS, SEEDS).content, expected(LABELS))
        assert len(server.log) == 6 + N - 5


@pytest.mark.parametrize("header", [{}, {"retry_after": "0.05"}, {"retry_after": "Wed, 21 Oct 2015 07:28:00 GMT"}])
def test_a_storm_of_429_and_500_costs_its_own_requests_and_no_row(header):
    seen = Counter()

    def stormy(asked, server):
        seen[asked.prompt] += 1
        if seen[asked.prompt] <= 2:
            return failure(429 if seen[asked.prompt] == 1 else 503, "slow down", **header)

    with ImageServer(stormy) as server:
        assert np.array_equal(part(server).generate(LABELS, SEEDS).content, expected(LABELS))
    assert len(server.log) == 3 * N


def test_retry_after_is_obeyed():
    times = []

    def once(asked, server):
        times.append(time.monotonic())
        return failure(429, retry_after="0.6") if len(times) == 1 else None

    with ImageServer(once) as server:
        part(server).generate(LABELS[:1], SEEDS[:1])
    assert times[1] - times[0] >= 0.6


@pytest.mark.parametrize(
    "answer",
    [
        Reply(body={"created": 0, "data": [{"b64_json": None}]}),
        Reply(body={"created": 0, "data": []}),
        Reply(body={"created": 0, "data": None}),
        Reply(body={"created": 0, "data": {"b64_json": "x"}}),
        Reply(body={"created": 0, "data": [{"b64_json": "%%%"}]}),
        Reply(body=b64(b"not an image")),
        Reply(body=b64(png(np.zeros((16, 16, 3), np.uint8))[:40])),
        Reply(body=b"<html>"),
        Reply(body=b"<html>", headers={"Content-Type": "text/html"}),
    ],
    ids=["null", "none", "no list", "a dict", "no base64", "no image", "cut off", "no json", "a page"],
)
def test_an_answer_that_is_no_image_is_asked_for_again_and_then_the_row_is_its_parent(answer, caplog):
    with ImageServer(lambda asked, server: answer if len(server.log) == 1 else None) as server:
        assert np.array_equal(part(server).generate(LABELS[:1], SEEDS[:1]).content, expected(LABELS[:1]))
        assert len(server.log) == 2

    def broken_for_the_first(asked, server):
        return answer if np.array_equal(asked.parent, given.content[0]) else None

    given = parents(4)
    with ImageServer(broken_for_the_first) as server, caplog.at_level(logging.WARNING):
        varied = part(server, retries=1).vary(given, LABELS[:4], 1, SEEDS[:4]).content
    assert np.array_equal(varied[0], given.content[0])
    assert np.array_equal(varied[1:], given.content[1:] // 2 + 1)
    assert len(server.log) == 4 + 1 and "1 of 4 rows got no image" in caplog.text


def test_a_request_that_hangs_is_given_up_and_asked_again():
    def hangs_once(asked, server):
        if len(server.log) == 1:
            time.sleep(1.5)

    with ImageServer(hangs_once) as server:
        start = time.monotonic()
        fresh = part(server, timeout=0.4, concurrency=1).generate(LABELS[:2], SEEDS[:2])
        assert time.monotonic() - start < 1.4
        assert np.array_equal(fresh.content, expected(LABELS[:2])) and len(server.log) == 3


REFUSALS = [
    failure(400, "Your request was rejected.", "content_policy_violation"),
    failure(
        400, "Your request was rejected by our safety system.", "moderation_blocked", "image_generation_user_error"
    ),
    failure(400, "The response was filtered", "content_filter", None),
]


@pytest.mark.parametrize("refusal", REFUSALS, ids=["policy", "moderation", "filter"])
def test_a_row_that_is_refused_comes_back_as_its_parent_and_is_asked_once(refusal, caplog):
    given = parents()

    def behave(asked, server):
        return refusal if any(np.array_equal(asked.parent, given.content[i]) for i in (2, 5)) else None

    with ImageServer(behave) as server, caplog.at_level(logging.WARNING):
        varied = part(server).vary(given, LABELS, 1, SEEDS).content
    whole = given.content // 2 + 1
    whole[[2, 5]] = given.content[[2, 5]]
    assert np.array_equal(varied, whole) and len(server.log) == N
    assert "2 of 12 rows got no image (refused by the content filter), come back as their parents" in caplog.text


def test_a_fresh_row_that_is_refused_tries_other_prompts_and_is_grey_in_the_end():
    def behave(asked, server):
        return REFUSALS[0] if "bad" in asked.prompt or asked.prompt.endswith("cat7") else None

    with ImageServer(behave) as server:
        fresh = part(server, prompts=["a {animal}", "a bad {animal}"], max_fallback_share=0.9).generate(LABELS, SEEDS)
    first = part(server, prompts=["a {animal}", "a bad {animal}"]).adopt(fresh, LABELS, SEEDS).traits["prompt"]
    for i, (image, prompt) in enumerate(zip(fresh.content, fresh.traits["prompt"], strict=True)):
        if i == 7 or "bad" in prompt:
            assert (image == 128).all()
        else:
            assert np.array_equal(image, expected(LABELS[i : i + 1])[0])
    assert "bad" in " ".join(first) and list(first) != list(fresh.traits["prompt"])
    assert len(server.log) <= 3 * N


@pytest.mark.parametrize("fault", [failure(500, "down"), REFUSALS[0], Reply(body=b"")], ids=["500", "filter", "empty"])
def test_too_many_rows_without_an_image_stop_the_run_with_one_line_and_what_was_answered_is_kept(fault):
    def behave(asked, server):
        return fault if any(f"cat{i}" in asked.prompt for i in (1, 3, 5, 7, 9)) else None

    with ImageServer(behave) as server:
        api = part(server, edits=["{animal}"], retries=1, concurrency=1)
        with pytest.raises(UserError, match=r"rows got no image .*api\.max_fallback_share=0\.25") as error:
            api.vary(parents(), LABELS, 1, SEEDS)
        assert "\n" not in str(error.value)
        answered = {asked.prompt for asked in server.log if not behave(asked, server)}
        server.log.clear()
        server.behave = lambda *_: None
        api.vary(parents(), LABELS, 1, SEEDS)
        assert not answered & {asked.prompt for asked in server.log} and len(server.log) == N - len(answered)


def test_an_endpoint_that_is_not_there_is_one_line():
    with ImageServer() as server:
        pass
    with pytest.raises(
        UserError, match=r"^api\.base_url=127.*Connect call failed.*: expected an endpoint that answers"
    ):
        part(server, patience=1).generate(LABELS, SEEDS)


@pytest.mark.parametrize(
    "reply, said",
    [
        (failure(401, f"Incorrect API key provided: {KEY}", "invalid_api_key"), r"^api\.api_key_env=IMAGE_KEY: .*401"),
        (
            failure(403, f"{KEY} may not"),
            r"^api\.base_url=127.*: expected an endpoint that allows .* 403: \(key\) may not",
        ),
        (
            Reply(body={"error": {"message": f"no {KEY}", "code": 401}}),
            r"^api\.api_key_env=IMAGE_KEY: .*200 with the error",
        ),
        (failure(404, f"The model painter does not exist ({KEY})", "model_not_found"), r"^api\.model=painter: .*exist"),
        (failure(400, f"Unknown parameter: 'quality' {KEY}"), r"^api\.model=painter: .*400: .*Unknown parameter"),
        (failure(429, f"no more, {KEY}", "insufficient_quota"), r"^api\.api_key_env=IMAGE_KEY: .*credit"),
    ],
    ids=["wrong key", "forbidden", "an error with 200", "unknown model", "unknown parameter", "no credit"],
)
def test_what_no_retry_can_mend_stops_at_once_with_one_line_that_does_not_quote_the_key(reply, said):
    with ImageServer(lambda *_: reply) as server, pytest.raises(UserError, match=said) as error:
        part(server, concurrency=2).generate(LABELS, SEEDS)
    assert KEY not in str(error.value) and "\n" not in str(error.value)
    assert len(server.log) <= 2


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1", "LA", "I;16", "RGB"])
def test_answers_of_any_mode_and_size_become_colour_images_of_the_size_asked_for(mode):
    grey = np.full((20, 12), 200, np.uint8)
    content = png(grey.astype(np.uint16) * 257) if mode == "I;16" else png(grey, mode)
    with ImageServer(lambda *_: Reply(body=b64(content))) as server:
        fresh = part(server, image_size=[9, 7]).generate(LABELS[:2], SEEDS[:2])
    assert fresh.content.shape == (2, 9, 7, 3) and fresh.content.dtype == np.uint8
    assert mode == "1" or np.abs(fresh.content.astype(int) - 200).max() <= 1


def test_transparent_pixels_are_white():
    clear = np.zeros((16, 16, 4), np.uint8)
    with ImageServer(lambda *_: Reply(body=b64(png(clear)))) as server:
        assert (part(server).generate(LABELS[:1], SEEDS[:1]).content == 255).all()


def test_an_address_is_fetched_without_the_key_and_no_file_is():
    def by_address(asked, server):
        server.served["/pictures/1.png"] = png(drawn(asked))
        return Reply(body={"created": 0, "data": [{"url": server.url.removesuffix("/v1") + "/pictures/1.png"}]})

    with ImageServer(by_address) as server:
        assert np.array_equal(part(server).generate(LABELS[:1], SEEDS[:1]).content, expected(LABELS[:1]))
        fetched = server.log[1]
        assert fetched.path == "/pictures/1.png" and "authorization" not in fetched.headers
        server.behave = lambda *_: Reply(body={"created": 0, "data": [{"url": "file:///etc/hostname"}]})
        with pytest.raises(UserError, match="got no image"):
            part(server, retries=0).generate(LABELS[1:4], SEEDS[1:4])


def test_grey_parents_of_another_size_are_adopted_and_sent_in_the_size_that_the_endpoint_takes():
    grey = Samples(parents(3, 8, 1).content, {"font": np.arange(3)})
    with ImageServer() as server:
        api = part(server, image_size=[12, 10])
        with pytest.raises(UserError, match="lack the trait prompt"):
            api.vary(grey, LABELS[:3], 1, SEEDS[:3])
        adopted = api.adopt(grey, LABELS[:3], SEEDS[:3])
        assert np.array_equal(adopted.content, grey.content) and "font" in adopted.traits
        for degree in (0.0, 1.0):
            assert api.vary(adopted, LABELS[:3], degree, SEEDS[:3]).content.shape == (3, 12, 10, 3)
        assert {asked.parent.shape for asked in server.log} == {(16, 16, 3)}


def test_no_rows_ask_nothing():
    with ImageServer() as server:
        none = part(server).generate([], SEEDS[:0])
        assert none.content.shape == (0, 16, 16, 3)
        assert part(server).vary(none, [], 1, SEEDS[:0]).content.shape == (0, 16, 16, 3)
        assert not server.log


def test_prompts_by_label_and_templates_without_their_column():
    with ImageServer() as server:
        labels = [{"animal": "cat", "size": "big"}, {"animal": "dog", "size": "big"}]
        api = part(server, prompts={"cat | big": ["a {size} cat"], "dog | big": "a dog"})
        assert list(api.generate(labels, SEEDS[:2]).traits["prompt"]) == ["a big cat", "a dog"]
        server.log.clear()
        with pytest.raises(UserError, match="templates for the label cat0 too"):
            api.generate(LABELS, SEEDS)
        with pytest.raises(UserError, match=r"^api\.prompts=a \{colour\}: .* label's columns \(animal\)"):
            part(server, prompts="a {colour}").generate(LABELS, SEEDS)
        with pytest.raises(UserError, match=r"^api\.edits=\{colour\}: .* columns \(prompt, animal\)"):
            part(server, edits=["{colour}"]).vary(parents(), LABELS, 1, SEEDS)
        assert not server.log


@pytest.mark.parametrize(
    "settings, said",
    [
        ({"model": None}, r"^api\.model=null"),
        ({"base_url": "localhost:80"}, r"^api\.base_url=localhost:80"),
        ({"base_url": "http://x:99999/v1"}, r"^api\.base_url=http://x:99999/v1: .*port"),
        ({"prompts": None}, r"^api\.prompts=null"),
        ({"prompts": "a {"}, r"^api\.prompts=a {"),
        ({"vary_with": "luck"}, r"^api\.vary_with=luck: expected edit or variation"),
        ({"edits": None}, r"^api\.edits=null"),
        ({"edits": "more"}, r"^api\.edits=more"),
        ({"size": "big"}, r"^api\.size=big"),
        ({"size": None}, r"^api\.image_size=null"),
        ({"image_size": [0, 1]}, r"^api\.image_size=\[0, 1\]"),
        ({"concurrency": 0}, r"^api\.concurrency=0"),
        ({"retries": -1}, r"^api\.retries=-1"),
        ({"timeout": 0}, r"^api\.timeout=0"),
        ({"max_fallback_share": 2}, r"^api\.max_fallback_share=2"),
    ],
)
def test_a_wrong_setting_is_one_line(settings, said):
    with pytest.raises(UserError, match=said) as error:
        part(None, **settings).check()
    assert "\n" not in str(error.value)


def test_a_key_in_the_place_of_its_name_is_refused_and_not_quoted():
    with pytest.raises(UserError, match=r"^api\.api_key_env=\(not shown\)") as error:
        part(None, api_key_env=KEY)
    assert KEY not in str(error.value)
    assert KEY not in repr(part(None))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of variations, by the client
def test_a_ping_asks_for_one_image_in_the_way_of_the_requests_to_come():
    with ImageServer() as server:
        part(server, quality="low").ping("generate")
        part(server).ping("vary")
        part(server, vary_with="variation").ping("vary")
        assert [asked.path.rpartition("/")[2] for asked in server.log] == ["generations", "edits", "variations"]
        assert server.log[0].fields["quality"] == "low"
    with ImageServer(lambda *_: REFUSALS[0]) as server:
        part(server).ping("generate")
    wrong = {
        r"^api\.api_key_env=IMAGE_KEY: .*401": failure(401, "no"),
        r"^api\.base_url=127.*few attempts: status 200, no image: busy elsewhere": Reply(
            body={"message": "busy elsewhere"}
        ),
        r"^api\.base_url=127.*a web page \(Sign in\)": Reply(body=b"<html><title>Sign in</title>"),
        r"^api\.base_url=127.*status 503: loading": failure(503, "loading"),
    }
    for line, reply in wrong.items():
        with ImageServer(lambda *_, reply=reply: reply) as server, pytest.raises(UserError, match=line):
            part(server).ping("generate")
    with pytest.raises(UserError, match=r"^api\.api_key_env=NO_SUCH_KEY: .*Set it; .*=null"):
        part("http://127.0.0.1:9", api_key_env="NO_SUCH_KEY").ping("generate")
    with pytest.raises(UserError, match=r"^api\.base_url=127.*an endpoint that can be reached"):
        part("http://127.0.0.1:9/v1").ping("generate")


@pytest.mark.parametrize("variables", [{"ALL_PROXY": "socks5://127.0.0.1:9"}, {"SSL_CERT_FILE": "/nowhere.pem"}])
def test_a_variable_of_the_environment_that_is_in_the_way_is_named(variables, monkeypatch):
    (name,) = variables
    monkeypatch.setenv(name, variables[name])
    with ImageServer() as server, pytest.raises(UserError, match=f"^{name}="):
        part(server).generate(LABELS, SEEDS)


def test_the_query_of_an_address_ends_up_behind_the_path():
    with ImageServer() as server:
        part(f"{server.url}/images/generations?api-version=2024-10-21").generate(LABELS[:1], SEEDS[:1])
        assert server.log[0].path == "/v1/images/generations?api-version=2024-10-21"
        assert server.log[0].headers["api-key"] == KEY


def test_an_endpoint_without_keys_gets_none(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with ImageServer() as server:
        api = part(server, api_key_env=None)
        api.check()
        api.generate(LABELS[:1], SEEDS[:1])
    assert KEY not in str(server.log[0].headers)


def test_a_degree_is_a_number_between_0_and_1():
    for degree in (0, 0.0, 0.3, 1):
        part(None).check_degree(degree)
    for degree in (-0.1, 1.1, True, "much", {"strength": 1}):
        with pytest.raises(UserError, match=r"^schedule\.degree="):
            part(None).check_degree(degree)


def test_it_is_picklable_before_and_after_it_is_asked():
    with ImageServer() as server:
        api = pickle.loads(pickle.dumps(part(server)))
        assert api == part(server)
        fresh = api.generate(LABELS[:2], SEEDS[:2]).content
        assert np.array_equal(pickle.loads(pickle.dumps(api)).generate(LABELS[:2], SEEDS[:2]).content, fresh)


def test_it_composes_with_what_stands_in_its_yaml():
    overrides = ["data=digits", "api=image_endpoint", "api.model=painter", "api.prompts='a {digit}'"]
    settings = compose.settings([*overrides, "api.api_key_env=IMAGE_KEY", "privacy.epsilon=1", "privacy.delta=1e-5"])
    api = build(settings).api
    assert isinstance(api, ImageEndpoint)
    api.check()
    assert api.row_bytes == 2 * 1024 * 1024 + 100


def test_what_asking_took_is_counted_and_told_and_goes_on_counting_in_the_next_process():
    with ImageServer(lambda asked, server: REFUSALS[0] if "cat3" in asked.prompt else None) as server:
        api, done = part(server, prices={"painter": 0.04}), []
        with api.watched(done.append):
            drawn_ones = api.generate(LABELS, SEEDS)
        assert api.usage == Usage(N - 1, 0, money=pytest.approx(0.04 * (N - 1)), fallbacks=1)
        assert sum(done) >= N
        again = part(server, prices={"painter": 0.04})
        again.resume(api.usage, None)
        again.generate(LABELS, SEEDS)
        assert again.usage.calls == N - 1 and again.usage.cached == N - 1  # nothing is paid for twice
        assert np.array_equal(drawn_ones.content, again.generate(LABELS, SEEDS).content)
    found = part(server, prices={"painter": 0.04}, requests_per_minute=30).estimate(LABELS, 10, 20)
    assert (found.calls, found.money, found.seconds) == (30, pytest.approx(1.2), 60)
    assert part(server).estimate(LABELS, 10, 20).money is None


def test_it_stops_before_the_cost_is_passed_and_goes_on_with_a_higher_one():
    with ImageServer() as server:
        api = part(server, prices={"painter": 1.0}, max_cost=5.5)
        with pytest.raises(UserError, match=r"^api\.max_cost=5\.5: expected more: 5\.00 spent, and the next image"):
            api.generate(LABELS, SEEDS)
        assert len(server.log) == 5
        rest = part(server, prices={"painter": 1.0}, max_cost=20)
        rest.resume(api.usage, None)
        rest.generate(LABELS, SEEDS)
        assert len(server.log) == N == rest.usage.calls
    with pytest.raises(UserError, match=r"^api\.max_cost=1: expected null where api\.prices lacks the model"):
        part(server, max_cost=1).check()


def test_a_limit_that_is_told_is_kept():
    with ImageServer() as server:
        start = time.monotonic()
        part(server, requests_per_minute=600, concurrency=N).generate(LABELS, SEEDS)
        assert 0.7 < time.monotonic() - start < 5
