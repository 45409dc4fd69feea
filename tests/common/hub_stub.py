"""A stand-in for the Hugging Face Hub on loopback: repository listings, files with ranges, and faults on order."""

import hashlib
import json
import math
import socket
import struct
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

BLOCK = 2**16


class Zeros:
    """A file of zero bytes that is made while it is sent; its length is all that is kept."""

    def __init__(self, size):
        self.size = size


class Repository:
    """One repository: {file name: bytes, Path or Zeros}, a commit, and the hashes that the Hub would state."""

    def __init__(self, files, commit=None, lfs=(".safetensors", ".parquet", ".bin")):
        self.files = files
        self.commit = commit or hashlib.sha1(repr(sorted(files)).encode()).hexdigest()
        self.lfs = lfs
        self.listing = [self._sibling(name) for name in files]

    def blocks(self, name, start=0):
        content = self.files[name]
        if isinstance(content, Zeros):
            for offset in range(start, content.size, BLOCK):
                yield bytes(min(BLOCK, content.size - offset))
            return
        data = content.read_bytes() if isinstance(content, Path) else content
        for offset in range(start, len(data), BLOCK):
            yield data[offset : offset + BLOCK]

    def size(self, name):
        content = self.files[name]
        if isinstance(content, Zeros):
            return content.size
        return content.stat().st_size if isinstance(content, Path) else len(content)

    def _sibling(self, name):
        size = self.size(name)
        sha256, blob = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % size)
        for block in self.blocks(name):
            sha256.update(block)
            blob.update(block)
        sibling = {"rfilename": name, "size": size, "blobId": blob.hexdigest()}
        if name.endswith(self.lfs):
            sibling["lfs"] = {"size": size, "sha256": sha256.hexdigest(), "pointerSize": 134}
        return sibling


class Hub:
    """The server; use as a context manager.

    repositories: {"models/ORG/NAME" or "datasets/ORG/NAME": Repository}.
    faults: functions (path, method) -> None or a fault, asked in turn for a request. A fault is a dict with "status"
    (and "headers"), "cut" (bytes sent before the connection drops; "reset": by a TCP reset), "hold" (an Event that it
    waits for), "hold_after" (bytes after which it waits for the Event "until"), "short" (the file is sent as if it
    ended there) or "flip" (a wrong bit in each block).
    sent: bytes of file content sent, by file; requests: (method, path, range) in order; tokens: (host, authorization).
    """

    def __init__(self, repositories):
        self.repositories, self.faults, self.sent, self.requests = repositories, [], {}, []
        self.tokens = []
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.hub = self
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()

    def find(self, path):
        """(repository or None, kind of request, rest) of a URL path."""
        for key, repository in self.repositories.items():
            api, files = f"/api/{key}", f"/{key.removeprefix('models/')}"
            if path == api or path.startswith(f"{api}/revision/"):
                return repository, "listing", path.removeprefix(api).removeprefix("/revision/") or "main"
            if path.startswith(f"{api}/tree/"):
                return repository, "tree", path.removeprefix(f"{api}/tree/")
            if path.startswith(f"{files}/resolve/"):
                return repository, "file", path.removeprefix(f"{files}/resolve/")
        return None, "", ""


class Handler(BaseHTTPRequestHandler):
    """Answers as the Hub that its server belongs to."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.answer("HEAD")

    def do_GET(self):
        self.answer("GET")

    def answer(self, method):
        path = unquote(urlsplit(self.path).path)
        self.server.hub.requests.append((method, path, self.headers.get("Range")))
        self.server.hub.tokens.append((self.headers.get("Host"), self.headers.get("Authorization")))
        if path == "/":
            return self.send(200, b"")
        fault = next((found for fault in self.server.hub.faults if (found := fault(path, method))), {})
        if "hold" in fault:
            fault["hold"].wait(60)
        if "status" in fault:
            return self.send(fault["status"], b"{}", fault.get("headers"))
        repository, kind, rest = self.server.hub.find(path)
        if repository is None:
            return self.send(404, b'{"error": "Repository not found"}', {"X-Error-Code": "RepoNotFound"})
        if kind == "file":
            revision, _, name = rest.partition("/")
            return self.send_file(repository, revision, name, method, fault)
        if rest.split("/")[0] not in ("main", repository.commit):
            return self.send(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        if kind == "tree":
            folder = rest.partition("/")[2]
            return self.send(200, json.dumps(tree(repository, folder, "recursive=true" in self.path.lower())).encode())
        listing = {"_id": "0", "id": "x/y", "sha": repository.commit, "siblings": repository.listing}
        self.send(200, json.dumps({**listing, "private": False, "tags": [], "downloads": 0}).encode())

    def send(self, status, body, headers=None):
        self.send_response(status)
        for key, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def send_file(self, repository, revision, name, method, fault):
        if name not in repository.files or revision not in ("main", repository.commit):
            return self.send(404, b"{}", {"X-Error-Code": "EntryNotFound"})
        sibling = next(s for s in repository.listing if s["rfilename"] == name)
        size = fault.get("short", repository.size(name))
        start = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").split("-")[0])
        if start >= size > 0:
            return self.send(416, b"", {"Content-Range": f"bytes */{size}"})
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(size - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("X-Repo-Commit", repository.commit)
        self.send_header("ETag", f'"{sibling.get("lfs", {}).get("sha256", sibling["blobId"])}"')
        self.end_headers()
        if method == "GET":
            self.send_content(repository.blocks(name, start), size - start, name, fault)

    def send_content(self, blocks, left, name, fault):
        limit = min(left, fault.get("cut", left))
        sent = 0
        for block in blocks:
            if sent >= fault.get("hold_after", math.inf):  # bytes; as a connection that has gone silent
                fault["until"].wait(60)
            sent += len(block)
            block = block[:limit]
            if fault.get("flip") and block:
                block = bytes([block[0] ^ 1]) + block[1:]
            try:
                self.wfile.write(block)
            except OSError:
                return
            self.server.hub.sent[name] = self.server.hub.sent.get(name, 0) + len(block)
            limit -= len(block)
            if limit <= 0:
                break
        if limit < left and "cut" in fault:
            self.close_connection = True
            if fault.get("reset"):  # with no time to linger, closing sends a TCP reset
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()


def tree(repository, folder, recursive):
    """A folder of a repository in the shape of the Hub's tree request: its files and, unless recursive, its folders."""
    entries, prefix = {}, f"{folder}/" if folder else ""
    for sibling in repository.listing:
        name = sibling["rfilename"]
        if not name.startswith(prefix):
            continue
        below = name.removeprefix(prefix).partition("/")
        if below[1]:
            path = prefix + below[0]
            entries[path] = {"type": "directory", "path": path, "oid": "0" * 40, "size": 0}
        if recursive or not below[1]:
            entries[name] = {"type": "file", "path": name, "size": sibling["size"], "oid": sibling["blobId"]}
            if lfs := sibling.get("lfs"):
                entries[name]["lfs"] = {**lfs, "oid": lfs["sha256"]}
    return list(entries.values())


def times(count, fault, ending=""):
    """A fault for the first `count` requests whose path ends with `ending`."""
    left = [count]

    def strike(path, method):
        if method == "GET" and path.endswith(ending) and left[0]:
            left[0] -= 1
            return fault
        return None

    return strike
