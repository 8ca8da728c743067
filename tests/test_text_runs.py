"""Whole runs of texts with a chat endpoint on the loopback: what is asked, what is paid, what survives."""

import csv
import io
import json
import multiprocessing
import os
import shutil
import signal
import time

import pyarrow.parquet as pq
import pytest
import yaml
from chat_server import FILTERED, ChatServer, Reply, failure
from harness import files, same_noise
from rich.console import Console

from dpsyn import cli, compose
from dpsyn.build import build
from dpsyn.data.mails import Mails
from dpsyn.errors import UserError
from dpsyn.execution import carry_out
from dpsyn.language import asking
from dpsyn.planning import facts
from dpsyn.show import Screen

TOPICS = ["delivery", "refund"]
PROMPTS = {
    "generate": {"user": "Write to a shop about {topic}, {style}."},
    "vary": {"system": "Fill in.", "user": "{masked_sample} It is about {topic}, {style}."},
    "words": {"style": [f"in style {i}" for i in range(300)]},
}
CANARY = "zanzibar marmalade quartz trombone"


@pytest.fixture(autouse=True)
def haste(monkeypatch):
    monkeypatch.setattr("dpsyn.language.pace.PAUSE", 0.02)
    monkeypatch.setattr("dpsyn.language.pace.LONGEST_PAUSE", 0.1)


def rows(n=60):
    mails = next(Mails(split="train", id=None, records=None, on_error="refuse").batches(2000))
    topics = [mails_label["topic"] for mails_label in Mails("train", None, None, "refuse").labels]
    named = [(text, topics[label]) for text, label in zip(mails.samples.content, mails.labels, strict=True)]
    return [(text, topic, f"u{i % 9}") for i, (text, topic) in enumerate(named) if topic in TOPICS][:n]


def private(path, given):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("text", "topic", "user"), *given])
    return path


def job(folder, url, *overrides):
    (folder / "prompts.yaml").write_text(yaml.safe_dump(PROMPTS))
    return build(
        compose.settings(
            [
                "data=texts",
                f"data.path={folder / 'data.csv'}",
                "data.id=test",
                "data.on_error=skip",
                "data.max_refused=0.1",
                "data.text_column=text",
                f"++data.labels={{topic: {TOPICS}}}".replace("'", ""),
                "api=chat",
                "api.model=m",
                "++api.prices.m=[10,100]",
                f"api.base_url={url}",
                "api.api_key_env=null",
                "api.concurrency=8",
                f"api.prompts.file={folder / 'prompts.yaml'}",
                "embedding=ngrams",
                "embedding.features=64",
                "schedule.releases=2",
                "schedule.size=12",
                "schedule.degree=0.5",
                "schedule.variations=[2,1]",
                "privacy.epsilon=4",
                "privacy.delta=1e-4",
                "expand.rows=40",
                f"run_dir={folder / 'run'}",
                *overrides,
            ]
        )
    )


def run(folder, url, *overrides):
    made, out = job(folder, url, *overrides), io.StringIO()
    carry_out(made, Screen(Console(file=out, width=200), facts(made), len(made.releases)))
    return out.getvalue()


def one_in_twenty(asked, server):
    return FILTERED if asked.body["seed"] % 20 == 0 else None


def said(server):
    """All requests, whatever the order of their arrival."""
    return sorted(json.dumps([asked.path, asked.body], sort_keys=True) for asked in server.log)


@pytest.mark.parametrize(
    ("more", "overrides"),
    [
        (lambda given: [*given, (CANARY, "refund", "u-new")], []),
        (lambda given: [(CANARY, "delivery", "u-new"), *given[1:]], ["privacy.adjacency=replace"]),
        (lambda given: [*given, (f"{CANARY}\udcff", "refund", "u-new"), ("", "refund", "u")], []),
        (lambda given: [*given, *[(CANARY, topic, "u3") for topic in TOPICS] * 9], ["privacy.unit=user"]),
        (lambda given: [row for row in given if row[1] != "refund"], ["label_shares=noisy"]),
    ],
)
def test_given_the_receipts_neighbouring_data_ask_the_same_and_release_the_same(
    more, overrides, tmp_path, monkeypatch, capfd
):
    overrides = [*overrides, "data.unit_column=user"]
    seen, noisy = [], None
    for number, given in enumerate([rows(), more(rows())]):
        folder = tmp_path / str(number)
        folder.mkdir()
        with (folder / "data.csv").open("w", newline="", errors="surrogateescape") as file:
            csv.writer(file).writerows([("text", "topic", "user"), *given])
        with ChatServer(one_in_twenty) as server, monkeypatch.context() as patched:
            patched.setenv("XDG_STATE_HOME", str(folder / "state"))
            patched.setenv("XDG_CACHE_HOME", str(folder / "cache"))
            noisy = same_noise(patched, noisy)
            printed = run(folder, server.url, *overrides)
            seen.append(
                (said(server), files(folder / "run/release"), printed.replace(str(folder), ""), capfd.readouterr())
            )
    assert seen[0] == seen[1]
    assert len(seen[0][0]) > 60
    told = "".join(seen[0][0] + seen[1][0])
    assert not any(word in told for word in CANARY.split())
    assert not any(text[:40] in told for text, _, _ in rows())
    public = [path for path in (tmp_path / "1").rglob("*") if path.is_file() and "private" not in path.parts]
    assert not [p for p in public if CANARY.split()[0].encode() in p.read_bytes() and p.name != "data.csv"]


def dying(folder, url, noisy, overrides, after):
    os.environ.update(XDG_STATE_HOME=str(folder / "state"), XDG_CACHE_HOME=str(folder / "cache"))
    from dpsyn.privacy import ledger

    ledger.discrete_gaussian = lambda exact, scale: noisy[len(os.listdir(folder / "run/release/votes"))]
    real, count = asking.json.loads, 0

    def counted(text):
        nonlocal count
        count += 1
        if count == after:
            time.sleep(0.5)  # what came in the last milliseconds may be lost (Answers); on a busy disk these are many
            os.kill(os.getpid(), signal.SIGKILL)
        return real(text)

    asking.json.loads = counted
    run(folder, url, *overrides)


def test_a_run_that_is_killed_while_it_asks_pays_for_no_answer_twice(tmp_path, monkeypatch):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for folder in (whole, killed):
        folder.mkdir()
        private(folder / "data.csv", rows())
    with ChatServer() as server, monkeypatch.context() as patched:
        patched.setenv("XDG_STATE_HOME", str(whole / "state"))
        patched.setenv("XDG_CACHE_HOME", str(whole / "cache"))
        noisy = same_noise(patched)
        run(whole, server.url)
        asked = said(server)
    with ChatServer(latency=0.01) as server:
        context = multiprocessing.get_context("fork")
        deaths = 0
        for after in (20, 20, 30):
            process = context.Process(target=dying, args=(killed, server.url, noisy, [], after))
            process.start()
            process.join(60)
            deaths += process.exitcode == -signal.SIGKILL
        assert deaths >= 2
        with monkeypatch.context() as patched:
            patched.setenv("XDG_STATE_HOME", str(killed / "state"))
            patched.setenv("XDG_CACHE_HOME", str(killed / "cache"))
            taken = len(list((killed / "run/release/votes").iterdir()))
            same_noise(patched, noisy[taken:])
            run(killed, server.url)
        again = said(server)
    assert set(again) == set(asked)
    # what was on its way when it died, `concurrency` at most, and a ping at each start
    assert len(again) - len(asked) <= 9 * deaths
    different = {
        name
        for name, content in files(whole / "run/release").items()
        if files(killed / "run/release").get(name) != content
    }
    assert all(name.startswith(("votes/", "privacy.json")) for name in different)  # the run's id


def test_with_the_endpoint_gone_it_stops_in_one_line_and_goes_on_at_another(tmp_path):
    private(tmp_path / "data.csv", rows())

    def dead(asked, server):
        return failure(503) if len(server.answered) >= 50 else None

    with ChatServer(dead) as server, pytest.raises(UserError) as stopped:
        run(tmp_path, server.url, "api.patience=0.5", "api.retries=2")
    assert len(str(stopped.value).splitlines()) == 1
    with ChatServer() as other:
        printed = run(tmp_path, other.url)
        assert 0 < len(other.log) < 110
    assert "asked: " in printed


def test_it_stops_before_it_costs_too_much_and_counts_over_all_starts(tmp_path, capsys):
    private(tmp_path / "data.csv", rows())
    with ChatServer() as server:
        with pytest.raises(UserError, match=r"api\.max_cost=0\.05"):
            run(tmp_path, server.url, "api.max_cost=0.05")
        spent = json.loads((tmp_path / "run/cost.json").read_text())
        assert 0 < spent["money"] <= 0.05
        assert spent["calls"] == len(server.answered)
        run(tmp_path, server.url, "api.max_cost=5")
        spent = json.loads((tmp_path / "run/cost.json").read_text())
        assert spent["calls"] == len(server.answered)
        assert spent["money"] == pytest.approx(spent["calls"] * (20 * 10 + 10 * 100) / 1e6)
        before = len(server.log)
        more = ["expand", str(tmp_path / "run"), "--rows", "60", f"api.base_url={server.url}"]
        assert cli.main(more) == 0
        assert len(server.log) - before == 20
        assert json.loads((tmp_path / "run/cost.json").read_text())["calls"] == len(server.answered)
    assert "60 rows" in capsys.readouterr().out
    shutil.rmtree(tmp_path / "run/private")  # and with it the address: the release names none
    assert cli.main(["expand", str(tmp_path / "run"), "--rows", "61"]) == 2
    assert "api.base_url=(not given): expected a value on the command line" in capsys.readouterr().err


ONCE = ["schedule.releases=1", "schedule.variations=1", "expand.rows=null"]


def private_side(monkeypatch, seen):
    """Notes when the private rows are opened, and when noise is drawn."""
    from dpsyn import voters
    from dpsyn.privacy import ledger

    real, draw = voters.open_electorate, ledger.discrete_gaussian
    opened = lambda *given, **more: seen.append("rows") or real(*given, **more)  # noqa: E731
    monkeypatch.setattr(voters, "open_electorate", opened)
    monkeypatch.setattr(ledger, "discrete_gaussian", lambda *given: seen.append("noise") or draw(*given))


def test_an_endpoint_is_pinged_before_a_private_row_is_read_and_on_every_start(tmp_path, monkeypatch):
    private(tmp_path / "data.csv", rows())
    seen = []
    private_side(monkeypatch, seen)
    answers = {"wrong": failure(401, "no such key"), "well": None}
    with ChatServer(lambda asked, server: seen.append("asked") or answers[server.state]) as server:
        server.state = "wrong"
        with pytest.raises(UserError, match=r"^api\.api_key_env=null: expected a key .*401: no such key"):
            run(tmp_path, server.url)
        assert seen == ["asked"] and not (tmp_path / "run").exists()
        server.state = "well"
        run(tmp_path, server.url, *ONCE)
        assert seen[1] == "asked" and "Reply with" in server.log[1].prompt
        assert sum("Reply with" in asked.prompt for asked in server.log) == 2
        # iteration 0 comes from the cache: nothing but the ping would find out before the budget is spent
        server.state, there = "wrong", len(server.log)
        seen.clear()
        with pytest.raises(UserError, match=r"401: no such key"):
            run(tmp_path, server.url, *ONCE, f"run_dir={tmp_path / 'again'}")
        assert seen == ["asked"] and len(server.log) == there + 1
        run(tmp_path, server.url, *ONCE)  # it is finished: nothing is to come
        assert len(server.log) == there + 1


def test_a_run_that_goes_on_pings_before_its_next_release(tmp_path, monkeypatch):
    private(tmp_path / "data.csv", rows())
    with ChatServer(lambda asked, server: failure(401) if len(server.log) > 40 else None) as server:
        with pytest.raises(UserError, match="401"):
            run(tmp_path, server.url, "expand.rows=null")
        taken = len(list((tmp_path / "run/release/votes").iterdir()))
        seen, there = [], len(server.log)
        private_side(monkeypatch, seen)
        with pytest.raises(UserError, match="401"):
            run(tmp_path, server.url, "expand.rows=null")
        assert not seen and len(server.log) == there + 1
        assert len(list((tmp_path / "run/release/votes").iterdir())) == taken


def test_a_plan_needs_no_key_and_pings_nobody(tmp_path, monkeypatch, capsys):
    from dpsyn.planning import show_plan

    private(tmp_path / "data.csv", rows())
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with ChatServer() as server:
        show_plan(job(tmp_path, server.url, "api.api_key_env=OPENAI_API_KEY"))
        assert not server.log and "API rows: at most" in capsys.readouterr().out
        with pytest.raises(UserError, match=r"^api\.api_key_env=OPENAI_API_KEY: .*Set it"):
            run(tmp_path, server.url, "api.api_key_env=OPENAI_API_KEY")
        assert not server.log and not (tmp_path / "run").exists()


def test_a_plan_says_calls_tokens_money_and_time_and_asks_nothing(tmp_path, capsys):
    from dpsyn.planning import show_plan

    private(tmp_path / "data.csv", rows())
    with ChatServer() as server:
        show_plan(job(tmp_path, server.url, "api.requests_per_minute=60"))
        assert not server.log
    out = " ".join(capsys.readouterr().out.split())
    assert "API rows: at most 112" in out
    assert "at most: 112 calls" in out
    assert "tokens, $2." in out
    assert "about 2 min" in out
    assert not (tmp_path / "run").exists()


def test_a_storm_of_faults_fills_every_row(tmp_path):
    private(tmp_path / "data.csv", rows())
    replies = [failure(429), failure(500), Reply(cut="reset"), Reply(cut=0.5), Reply(body=""), FILTERED, *[None] * 18]

    with ChatServer(lambda asked, server: replies[len(server.log) % len(replies)]) as server:
        run(tmp_path, server.url, "api.retries=20", "api.attempts=10", "api.deadline=100")
        answered = [json.dumps(asked.body) for asked in server.answered]
    assert len(answered) == len(set(answered))
    from dpsyn.runs.directory import open_run

    assert all(text for text in open_run(tmp_path / "run").load(2).samples.content)


@pytest.mark.parametrize("schedule", [["schedule=none", "schedule.size=300"], ["schedule.size=300"]])
def test_sums_choose_texts_of_their_labels_and_are_verified_resumed_and_expanded(schedule, tmp_path, own_state, capsys):
    root = tmp_path / "run"
    given = ["run", "+experiment=text_smoke", *schedule, "schedule.candidates=900", "metric=none", f"run_dir={root}"]
    assert cli.main(given) == 0
    said = capsys.readouterr().out
    assert "embedding sums: " in said
    statement = json.loads((root / "release/privacy.json").read_text())
    assert [charge["name"] for charge in statement["charges"]][-1] == "embedding sums"
    assert statement["charges"][-1]["grid"] == 2**20
    assert cli.main(["verify", str(root)]) == 0
    before = (root / "release/synthetic.parquet").read_bytes()
    (root / "release/synthetic.parquet").unlink()
    assert cli.main(given) == 0  # nothing is asked again
    assert (root / "release/synthetic.parquet").read_bytes() == before
    assert cli.main(["expand", str(root), "--rows", "500"]) == 0
    assert pq.read_table(root / "release/synthetic.parquet").num_rows == 500
    assert len(list((root / "private/intents").iterdir())) == len(statement["charges"])
