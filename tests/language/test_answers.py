"""The answers that are kept: nothing is lost by a kill, nothing crashes over a file."""

import json
import logging
import os
import signal
import sqlite3
import subprocess
import sys

import pytest

from dpsyn.errors import OutOfSpace, UserError
from dpsyn.files import answers_cache
from dpsyn.language.answers import Answers, answer_key

KEYS = [answer_key("m", {"t": 1}, [{"role": "user", "content": "hé\ud800"}], i, 0) for i in range(1200)]


def path():
    return answers_cache("answers") / "answers.sqlite"


def test_what_was_put_is_there_for_the_next_one_and_nothing_else_is():
    with Answers() as answers:
        assert answers.get(KEYS) == {}
        for i, key in enumerate(KEYS[:-1]):
            answers.put(key, {"text": f"é\x00{i}", "finish": "stop"})
    with Answers() as answers:
        found = answers.get(KEYS)
        answers.put(KEYS[0], {"text": None})
    assert found == {key: {"text": f"é\x00{i}", "finish": "stop"} for i, key in enumerate(KEYS[:-1])}
    with Answers() as answers:
        assert answers.get(KEYS[:1]) == {KEYS[0]: {"text": None}}
    assert len(set(KEYS)) == len(KEYS) and all(len(key) == 32 for key in KEYS)


def test_the_files_are_for_their_owner_alone():
    with Answers() as answers:
        answers.put(KEYS[0], 1)
        while not answers.get(KEYS[:1]):
            pass
        modes = {file.name: file.stat().st_mode & 0o777 for file in path().parent.glob("answers.sqlite*")}
    assert set(modes) == {"answers.sqlite", "answers.sqlite-wal", "answers.sqlite-shm"}
    assert set(modes.values()) == {0o600}


KILLED = """
import sys, time
from dpsyn.language.answers import Answers, answer_key
answers, other = Answers().__enter__(), Answers().__enter__()
for i in range(300):
    answers.put(answer_key(i), i)
while len(other.get([answer_key(i) for i in range(300)])) < 300:
    time.sleep(0.01)
print("put", flush=True)
time.sleep(60)
"""


def test_a_process_that_is_killed_has_kept_all_that_came_a_moment_before():
    with subprocess.Popen([sys.executable, "-c", KILLED], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "put\n"
        process.send_signal(signal.SIGKILL)
    with Answers() as answers:
        assert answers.get(answer_key(i) for i in range(300)) == {answer_key(i): i for i in range(300)}


MANY = """
import sys
from dpsyn.language.answers import Answers, answer_key
with Answers() as answers:
    for i in range(400):
        answers.put(answer_key(int(sys.argv[1]) + i), i)
"""


def test_several_processes_put_at_once_and_nothing_is_lost():
    started = [subprocess.Popen([sys.executable, "-c", MANY, str(200 * k)]) for k in range(3)]
    assert [process.wait() for process in started] == [0, 0, 0]
    with Answers() as answers:
        assert len(answers.get(answer_key(i) for i in range(1000))) == 800


@pytest.mark.parametrize("kind", ["garbage", "another", "cut"])
def test_a_broken_or_foreign_file_is_put_aside_with_a_line(kind, caplog):
    if kind == "garbage":
        path().write_bytes(b"no database " * 1000)
    elif kind == "another":
        with sqlite3.connect(path()) as other:
            other.execute("CREATE TABLE answers (question TEXT)")
        other.close()
    else:
        with Answers() as answers:
            for i, key in enumerate(KEYS):
                answers.put(key, i)
        content = bytearray(path().read_bytes())
        content[4096:] = b"\xff" * (len(content) - 4096)
        path().write_bytes(content)
    with caplog.at_level(logging.WARNING), Answers() as answers:
        assert answers.get(KEYS) == {}
        answers.put(KEYS[0], "new")
    assert "answers.sqlite.broken1" in caplog.text and caplog.text.count("\n") == 1
    with Answers() as answers:
        assert answers.get(KEYS) == {KEYS[0]: "new"}
    assert path().with_name("answers.sqlite.broken1").exists()


def test_a_file_that_breaks_while_it_is_used_is_put_aside_and_the_run_goes_on(caplog):
    with caplog.at_level(logging.WARNING), Answers() as answers:
        for i, key in enumerate(KEYS):
            answers.put(key, i)
        while len(answers.get(KEYS)) < len(KEYS):
            pass
        answers.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        size = path().stat().st_size
        with path().open("r+b") as file:
            file.seek(4096)
            file.write(b"\xff" * (size - 4096))
        answers.connection.execute("PRAGMA cache_size=1")
        answers.connection.execute("PRAGMA shrink_memory")
        assert answers.get(KEYS) == {}
        answers.put(KEYS[1], "new")
    assert "broken1" in caplog.text
    with Answers() as answers:
        assert answers.get(KEYS) == {KEYS[1]: "new"}


def test_a_value_that_is_no_json_counts_as_not_there():
    with Answers() as answers:
        answers.put(KEYS[0], 1)
    with sqlite3.connect(path()) as other:
        other.execute("INSERT INTO answers VALUES (?, '{')", [KEYS[1]])
    other.close()
    with Answers() as answers:
        assert answers.get(KEYS) == {KEYS[0]: 1}


def test_a_file_that_cannot_be_written_is_one_line(monkeypatch):
    path().mkdir()
    with pytest.raises(UserError, match=r"answers\.sqlite: the answers that are kept cannot be used"), Answers():
        pass
    path().rmdir()

    def full(*_):
        raise sqlite3.OperationalError("database or disk is full")

    with pytest.raises(OutOfSpace, match="the disk is full"), Answers() as answers:
        monkeypatch.setattr("dpsyn.language.answers.insert", full)
        answers.put(KEYS[0], 1)
    with pytest.raises(OutOfSpace), Answers() as answers:
        while True:
            answers.put(KEYS[0], 1)


def test_a_key_tells_apart_all_that_it_is_made_of():
    asked = ["m", {"temperature": 1.0}, [{"role": "user", "content": "a"}], 7, 0]
    others = [["n"], {"temperature": 1.1}, [{"role": "user", "content": "b"}], 8, 1]
    keys = {answer_key(*asked)} | {answer_key(*asked[:i], others[i], *asked[i + 1 :]) for i in range(5)}
    assert len(keys) == 6
    assert answer_key(*json.loads(json.dumps(asked))) == answer_key(*asked)
    code = "from dpsyn.language.answers import answer_key; print(answer_key('m', {'a': 1, 'b': 2.5}, 7).hex())"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ})
    assert out.stdout.strip() == answer_key("m", {"b": 2.5, "a": 1}, 7).hex()
