"""A loopback chat endpoint in OpenAI's manner that can fail in all the ways of real ones, and keeps every request.

`with ChatServer(behave) as server`: its own event loop in a thread. As a process of its own (for benchmarks):
`python tests/chat_server.py --latency 0.2 [--per-minute 600]`, which prints its address and ends with its input.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import socket
import struct
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass
class Asked:
    """A request as the server saw it. at: time.monotonic() of its arrival."""

    path: str
    headers: dict
    body: dict
    at: float

    @property
    def prompt(self):
        return self.body["messages"][-1]["content"]

    @property
    def key(self):
        return self.headers.get("authorization", "").removeprefix("Bearer ")


@dataclass
class Reply:
    """after: seconds before the first byte. cut: 'reset' instead of an answer, or the share of the body after which the
    connection ends. drip: seconds between the bytes of the body."""

    status: int = 200
    body: object = None  # None: an answer; a text: an answer of these words; a dict: as json; bytes: as they are
    headers: dict = field(default_factory=dict)
    after: float = 0.0
    cut: object = None
    drip: float = 0.0
    finish: str = "stop"


def failure(status, message="", code=None, kind=None, after=0.0, **headers):
    body = {"error": {"message": message, "code": code, "type": kind, "param": None}}
    return Reply(status, body, {name.replace("_", "-"): value for name, value in headers.items()}, after)


FILTERED = failure(400, "The response was filtered.", "content_filter")


WORDS = [f"{first}{last}" for first in ("on", "in", "at") for last in "abcdefghijklmnopqrstuvwxyz"]  # each one once


def words(asked):
    """What the server answers: of the messages and the seed alone."""
    said = json.dumps([asked.body["messages"], asked.body.get("seed")], sort_keys=True)
    return f"An answer that is {hashlib.sha256(said.encode()).hexdigest()[:12]} and nothing else."


def completion(text, finish="stop", usage=True):
    """The body of an answer; text may be None."""
    counts = {"prompt_tokens": 20, "completion_tokens": 10, "total_tokens": 30}
    message = {"role": "assistant", "content": text, "refusal": None}
    choices = [{"index": 0, "message": message, "finish_reason": finish, "logprobs": None}]
    body = {"id": "chatcmpl-1", "object": "chat.completion", "created": 0, "model": "m", "choices": choices}
    return body | ({"usage": counts} if usage else {})


class Window:
    """A limit that really counts: at most `most` requests in any `seconds`."""

    def __init__(self, most, seconds):
        self.most, self.seconds, self.times = most, seconds, deque()

    def full(self, now):
        while self.times and self.times[0] <= now - self.seconds:
            self.times.popleft()
        if len(self.times) >= self.most:
            return True
        self.times.append(now)
        return False


class ChatServer:
    """behave(asked, server) -> Reply, or None for an answer; it may not sleep (Reply.after does).

    log: all requests, in order. answered: those that were answered well. most_at_once: the most on their way together.
    stop() and start() on the same port: an endpoint that is down, and comes back. tls: an ssl.SSLContext; it then
    speaks https.
    """

    def __init__(self, behave: Callable | None = None, latency=0.0, tls=None) -> None:
        self.tls = tls
        self.behave = behave or (lambda asked, server: None)
        self.latency = latency
        self.log: list[Asked] = []
        self.answered: list[Asked] = []
        self.most_at_once = self.now = self.port = 0
        self.loop = asyncio.new_event_loop()
        self.connections: set[asyncio.StreamWriter] = set()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)

    @property
    def url(self):
        return f"http{'s' if self.tls else ''}://127.0.0.1:{self.port}/v1"

    def __enter__(self):
        self.thread.start()
        self.start()
        return self

    def __exit__(self, *_):
        self.stop()
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.run_until_complete(self._ended())
        self.loop.close()

    def start(self):
        self._do(self._start())

    def stop(self):
        self._do(self._stop())

    def _do(self, task):
        return asyncio.run_coroutine_threadsafe(task, self.loop).result(10)

    async def _start(self):
        self.server = await asyncio.start_server(self._serve, "127.0.0.1", self.port, backlog=1024, ssl=self.tls)
        self.port = self.server.sockets[0].getsockname()[1]

    async def _stop(self):
        self.server.close()
        for writer in list(self.connections):
            writer.transport.abort()

    async def _ended(self):
        tasks = asyncio.all_tasks(self.loop) - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self, reader, writer):
        self.connections.add(writer)
        try:
            while await self._one(reader, writer):
                pass
        except (OSError, asyncio.IncompleteReadError):
            pass  # the client gave up
        finally:
            self.connections.discard(writer)
            writer.close()

    async def _one(self, reader, writer):
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:] if line)}
        body = json.loads(await reader.readexactly(int(headers.get("content-length", 0))) or b"{}")
        asked = Asked(head[0].split()[1], headers, body, time.monotonic())
        self.log.append(asked)
        self.now += 1
        self.most_at_once = max(self.most_at_once, self.now)
        try:
            reply = self.behave(asked, self) or Reply()
            await asyncio.sleep(reply.after or self.latency)
        finally:
            self.now -= 1
        if reply.cut == "reset":
            linger = struct.pack("ii", 1, 0)
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            writer.transport.abort()
            return False
        good = reply.status == 200 and reply.body is None and reply.cut is None
        content = words(asked) if reply.body is None else reply.body
        content = completion(content, reply.finish) if isinstance(content, str) else content
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        lines = [f"HTTP/1.1 {reply.status} X", f"Content-Length: {len(data)}"]
        lines += [f"{name}: {value}" for name, value in {"Content-Type": "application/json", **reply.headers}.items()]
        writer.write(("\r\n".join(lines) + "\r\n\r\n").encode())
        if reply.cut is not None:
            writer.write(data[: int(len(data) * reply.cut)])
            await writer.drain()
            return False
        if reply.drip:
            for i in range(len(data)):
                writer.write(data[i : i + 1])
                await writer.drain()
                await asyncio.sleep(reply.drip)
            if good:
                self.answered.append(asked)
        else:
            if good and not writer.transport.is_closing():
                self.answered.append(asked)  # before the client can have it, and its test can end
            writer.write(data)
        await writer.drain()
        return True


class Fast(asyncio.Protocol):
    """One connection to a server that reads nothing of a request but its length: 20,000 calls a second."""

    asked = refused = 0

    def __init__(self, latency, window):
        self.latency, self.window, self.waiting = latency, window, b""

    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        self.waiting += data
        head, end, body = self.waiting.partition(b"\r\n\r\n")
        if not end or len(body) < int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0]):
            return
        self.waiting = b""  # nobody sends a request before the last one is answered
        Fast.asked += 1
        status, more, content = "200 OK", "", self.text % Fast.asked
        if self.window and self.window.full(time.monotonic()):
            Fast.refused += 1
            status, more, content = "429 X", "Retry-After: 1\r\n", json.dumps(failure(429, "slow down").body)
        head = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\n{more}Content-Length: {len(content)}\r\n\r\n"
        asyncio.get_running_loop().call_later(self.latency, self.transport.write, (head + content).encode())

    text = json.dumps(completion("Answer number %d, of about as many words as a review has: " + " ".join(WORDS)))


async def serve(latency, window):
    server = await asyncio.get_running_loop().create_server(lambda: Fast(latency, window), "127.0.0.1", backlog=1024)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1", flush=True)
    await asyncio.to_thread(sys.stdin.read)
    print(json.dumps({"requests": Fast.asked, "refused": Fast.refused}), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--latency", type=float, default=0.2)
    parser.add_argument("--per-minute", type=int)
    chosen = parser.parse_args()
    asyncio.run(serve(chosen.latency, chosen.per_minute and Window(chosen.per_minute, 60)))
