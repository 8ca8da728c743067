"""A stand-in for the hub on the loopback address: takes data sets as huggingface_hub sends them."""

import base64
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@contextmanager
def hub(token="hf_test", status=200):
    """(address, repositories: name to {file: bytes}, those that were made private). Parquet goes as large files do."""
    repositories, hidden, large = {}, [], {}

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if status != 200 or self.headers.get("authorization") != f"Bearer {token}":
                return self.answer(status if status != 200 else 401, {"error": "Invalid token"})
            if self.path == "/api/repos/create":
                said = json.loads(content)
                name = f"{said['organization']}/{said['name']}"
                repositories.setdefault(name, {})
                hidden.extend([name] * (bool(said.get("private")) or said.get("visibility") == "private"))
                return self.answer(200, {"url": f"{self.origin}/datasets/{name}", "name": name})
            if self.path == "/api/validate-yaml":
                return self.answer(200, {"errors": [], "warnings": []})
            if "/preupload/" in self.path:
                files = json.loads(content)["files"]
                modes = [{"path": f["path"], "uploadMode": "lfs" if f["path"].endswith("parquet") else "regular",
                          "shouldIgnore": False} for f in files]  # fmt: skip
                return self.answer(200, {"files": modes})
            if self.path.endswith("/info/lfs/objects/batch"):
                found = [{**o, "actions": {"upload": {"href": f"{self.origin}/put/{o['oid']}"}}}
                         for o in json.loads(content)["objects"]]  # fmt: skip
                return self.answer(200, {"transfer": "basic", "objects": found})
            assert "/commit/" in self.path, self.path
            name = "/".join(self.path.split("/")[3:5])
            for line in content.decode().splitlines():
                said = json.loads(line)
                value = said["value"]
                if said["key"] == "file":
                    repositories[name][value["path"]] = base64.b64decode(value["content"])
                elif said["key"] == "lfsFile":
                    repositories[name][value["path"]] = large[value["oid"]]
                elif said["key"] == "deletedFile":
                    del repositories[name][value["path"]]
            self.answer(200, {"commitUrl": f"{self.origin}/datasets/{name}/commit/abc", "commitOid": "abc"})

        def do_PUT(self):
            large[self.path.split("/")[-1]] = self.rfile.read(int(self.headers["Content-Length"]))
            self.answer(200, {})

        def do_GET(self):
            name = "/".join(self.path.split("/")[3:5])
            files = [{"type": "file", "path": path, "size": len(content), "oid": "0" * 40}
                     for path, content in repositories.get(name, {}).items()]  # fmt: skip
            siblings = [{"rfilename": each["path"]} for each in files]
            about = {"id": name, "sha": "abc", "siblings": siblings, "private": False, "tags": [], "downloads": 0}
            self.answer(200, files if "/tree/" in self.path else about)

        def answer(self, code, what):
            body = json.dumps(what).encode()
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        @property
        def origin(self):
            return f"http://127.0.0.1:{self.server.server_port}"

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", repositories, hidden
    finally:
        server.shutdown()
        server.server_close()
