"""A loopback image endpoint in OpenAI's manner: it decodes what it is sent, and its answers are made of it."""

from __future__ import annotations

import base64
import email
import email.policy
import hashlib
import io
import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
from PIL import Image


@dataclass
class Asked:
    """A request as the server saw it. fields: all that is no file. parent: uint8 [h, w, c], or None."""

    path: str
    headers: dict
    fields: dict
    files: dict
    parent: np.ndarray | None

    @property
    def prompt(self):
        return self.fields.get("prompt", "")


@dataclass
class Reply:
    status: int = 200
    body: object = None  # None: the image; a dict: as json; bytes: as they are
    headers: dict = field(default_factory=dict)


def failure(status, message="", code=None, kind="invalid_request_error", **headers):
    body = {"error": {"message": message, "code": code, "type": kind, "param": None}}
    return Reply(status, body, {name.replace("_", "-"): value for name, value in headers.items()})


def drawn(asked, side=16):
    """uint8 [side, side, 3]: of a parent itself, a step brighter; of a prompt one colour."""
    if asked.parent is not None:
        return asked.parent[..., :3] // 2 + 1
    colour = np.frombuffer(hashlib.sha256(asked.prompt.encode()).digest()[:3], np.uint8)
    return np.broadcast_to(colour, (side, side, 3))


def png(image, mode=None):
    sink = io.BytesIO()
    picture = Image.fromarray(np.ascontiguousarray(image))
    (picture.convert(mode) if mode else picture).save(sink, "PNG")
    return sink.getvalue()


def b64(content):
    return {"created": 0, "data": [{"b64_json": base64.b64encode(content).decode()}]}


class ImageServer:
    """`with ImageServer(behave) as server`: behave(asked, server) -> Reply, or None for the image; it may sleep.

    log: all requests, in order. most_at_once: the most that were on their way together.
    """

    def __init__(self, behave: Callable | None = None) -> None:
        self.behave = behave or (lambda asked, server: None)
        self.log: list[Asked] = []
        self.served: dict[str, bytes] = {}  # path -> what a GET of it brings
        self.most_at_once = self.now = 0
        self.lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                with outer.lock:
                    outer.now += 1
                    outer.most_at_once = max(outer.most_at_once, outer.now)
                body = self.rfile.read(int(self.headers["Content-Length"]))
                asked = _decoded(self.path, self._lower(), body)
                with outer.lock:
                    outer.log.append(asked)
                reply = outer.behave(asked, outer) or Reply()
                with outer.lock:
                    outer.now -= 1
                content = b64(png(drawn(asked))) if reply.body is None else reply.body
                self._send(reply.status, content, reply.headers)

            def do_GET(self):
                outer.log.append(Asked(self.path, self._lower(), {}, {}, None))
                content = outer.served.get(self.path)
                self._send(200 if content else 404, content or b"", {})

            def _lower(self):
                return {name.lower(): value for name, value in self.headers.items()}

            def _send(self, status, content, headers):
                data = content if isinstance(content, bytes) else json.dumps(content).encode()
                try:
                    self.send_response(status)
                    for name, value in {"Content-Type": "application/json", **headers}.items():
                        self.send_header(name, value)
                    self.send_header("Content-Length", str(len(data)))
                    self.end_headers()
                    self.wfile.write(data)
                except OSError:
                    pass  # the client gave up

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/v1"

    def __enter__(self) -> ImageServer:
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


def _decoded(path, headers, body):
    kind = headers.get("content-type", "")
    if kind.startswith("application/json"):
        return Asked(path, headers, json.loads(body), {}, None)
    message = email.message_from_bytes(b"Content-Type: " + kind.encode() + b"\r\n\r\n" + body, policy=email.policy.HTTP)
    fields, files, parent = {}, {}, None
    for part in message.iter_parts():
        name, content = part.get_param("name", header="Content-Disposition"), part.get_payload(decode=True)
        if part.get_filename() is None:
            fields[name] = content.decode()
        else:
            files[name] = (part.get_filename(), part.get_content_type())
            parent = np.asarray(Image.open(io.BytesIO(content)))
    return Asked(path, headers, fields, files, parent)
