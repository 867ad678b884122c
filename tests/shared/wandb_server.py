"""A stand-in for W&B's server on this machine: it speaks what the SDK's online mode asks for, and keeps what it is sent.

GraphQL at /graphql, the stream of a run's files at /files/ENTITY/PROJECT/RUN/file_stream, uploads at /upload/.
"""

from __future__ import annotations

import gzip
import json
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

ENTITY, KEY = "me", "0" * 40
HISTORY, SUMMARY = "wandb-history.jsonl", "wandb-summary.json"


@dataclass
class OnlineRun:
    """What the server holds of a run, after all processes that wrote to its id."""

    id: str
    project: str
    group: str | None = None
    job_type: str | None = None
    display_name: str | None = None
    config: dict[str, Any] = field(default_factory=dict)
    history: dict[int, dict[str, Any]] = field(default_factory=dict)  # by line
    summary: dict[str, Any] = field(default_factory=dict)
    exit_codes: list[int] = field(default_factory=list)
    taken_up: int = 0  # how many processes asked for it, and found it

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The history, a dictionary a line."""
        return [self.history[line] for line in sorted(self.history)]

    @property
    def axes(self) -> dict[str, str]:
        """{metric or glob: its step metric}, from W&B's own part of the config, where metrics are numbered from 1."""
        stated = self.config.get("_wandb", {}).get("m", [])
        names = [one.get("1") or one.get("2") for one in stated]
        return {name: names[one["5"] - 1] for name, one in zip(names, stated, strict=True) if "5" in one}


class Server:
    """The stand-in's state. `url` is its address; `runs` by (project, id); `files` what was uploaded, by its path."""

    def __init__(self) -> None:
        self.runs: dict[tuple[str, str], OnlineRun] = {}
        self.files: dict[str, bytes] = {}
        self.unknown: list[str] = []  # operations that were asked for and have no answer here
        self.lock, self.url, self.artifacts = threading.Lock(), "", 0

    def answer(self, operation: str, given: Mapping[str, Any]) -> dict[str, Any]:
        """The data of a GraphQL operation."""
        method = getattr(self, f"_{operation}", None)
        if method is None:
            self.unknown.append(operation)
            return {}
        return method(given)

    def _Viewer(self, given: Mapping[str, Any]) -> dict[str, Any]:
        return {"viewer": {"id": "u", "entity": ENTITY, "username": ENTITY, "flags": "{}", "teams": {"edges": []}}}

    def _RunResumeStatus(self, given: Mapping[str, Any]) -> dict[str, Any]:
        run = self.runs.get((given["project"], given["name"]))
        model = {"id": given["project"], "name": given["project"], "entity": {"id": "e", "name": ENTITY}, "bucket": None}
        if run is not None:
            run.taken_up += 1
            wrapped = {name: {"value": value} for name, value in run.config.items()}
            tail = json.dumps([json.dumps(row) for row in run.rows[-1:]])
            model["bucket"] = {
                "id": run.id,
                "name": run.id,
                "summaryMetrics": json.dumps(run.summary),
                "displayName": run.display_name,
                "logLineCount": 0,
                "historyLineCount": len(run.history),
                "eventsLineCount": 0,
                "historyTail": tail,
                "eventsTail": "[]",
                "config": json.dumps(wrapped),
                "tags": [],
                "notes": None,
                "wandbConfig": json.dumps({"t": 1}),
            }
        return {"model": model}

    def _UpsertBucket(self, given: Mapping[str, Any]) -> dict[str, Any]:
        place = given.get("project") or "uncategorized", given["name"]
        new = place not in self.runs
        run = self.runs.setdefault(place, OnlineRun(id=place[1], project=place[0]))
        run.group = given.get("groupName") or run.group
        run.job_type = given.get("jobType") or run.job_type
        run.display_name = given.get("displayName") or run.display_name or place[1]
        for name, held in json.loads(given.get("config") or "{}").items():
            run.config[name] = held["value"]
        project = {"id": place[0], "name": place[0], "entity": {"id": "e", "name": ENTITY}}
        bucket = {"id": run.id, "name": run.id, "displayName": run.display_name, "config": "{}", "project": project}
        return {"upsertBucket": {"bucket": {**bucket, "historyLineCount": len(run.history)}, "inserted": new}}

    def _CreateRunFiles(self, given: Mapping[str, Any]) -> dict[str, Any]:
        files = [{"name": name, "uploadUrl": f"{self.url}/upload/{given['run']}/{name}"} for name in given["files"]]
        return {"createRunFiles": {"runID": given["run"], "uploadHeaders": [], "files": files}}

    def _ArtifactType(self, given: Mapping[str, Any]) -> dict[str, Any]:
        return {"project": {"artifact": None}}

    def _ServerFeaturesQuery(self, given: Mapping[str, Any]) -> dict[str, Any]:
        return {"serverInfo": {"features": []}}

    def _CreateArtifact(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Tables are sent as artifacts too; each is taken as a new one."""
        self.artifacts += 1
        artifact = {"id": f"artifact-{self.artifacts}", "state": "PENDING", "artifactSequence": {"id": "s"}}
        return {"createArtifact": {"artifact": artifact}}

    def _CreateArtifactManifest(self, given: Mapping[str, Any]) -> dict[str, Any]:
        file = {"id": "f", "uploadUrl": f"{self.url}/upload/{given['artifactID']}/manifest.json", "uploadHeaders": []}
        return {"createArtifactManifest": {"artifactManifest": {"id": "m", "file": file}}}

    _UpdateArtifactManifest = _CreateArtifactManifest

    def _CreateArtifactFiles(self, given: Mapping[str, Any]) -> dict[str, Any]:
        edges = []
        for file in given["input"]["artifactFiles"]:
            address = f"{self.url}/upload/{file['artifactID']}/{file['name']}"
            node = {"storagePath": file["name"], "uploadUrl": address, "uploadHeaders": [], "uploadMultipartUrls": None}
            edges.append({"node": {**node, "artifact": {"id": file["artifactID"]}}})
        return {"createArtifactFiles": {"files": {"edges": edges}}}

    def _CommitArtifact(self, given: Mapping[str, Any]) -> dict[str, Any]:
        return {"commitArtifact": {"artifact": {"id": given["artifactID"], "digest": ""}}}

    def stream(self, project: str, id: str, sent: Mapping[str, Any]) -> None:
        """Lines of a run's files, each at its place, and at the end the exit code."""
        run = self.runs[project, id]
        for name, part in sent.get("files", {}).items():
            if name == HISTORY:
                run.history.update({part["offset"] + n: json.loads(line) for n, line in enumerate(part["content"])})
            if name == SUMMARY:
                run.summary.update(json.loads(part["content"][-1]))
        if sent.get("complete"):
            run.exit_codes.append(sent["exitcode"])


@contextmanager
def wandb_server() -> Iterator[Server]:
    """A stand-in that listens on a free port of this machine until the block ends."""
    server = Server()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            sent = json.loads(self._body() or b"{}")
            stream = re.fullmatch(r"/files/[^/]+/([^/]+)/([^/]+)/file_stream", self.path)
            with server.lock:
                if stream:
                    server.stream(stream[1], stream[2], sent)
                    self._reply({"limits": {}})
                else:
                    asked = re.search(r"(?:query|mutation)\s+(\w+)", sent["query"])
                    self._reply({"data": server.answer(asked[1] if asked else "", sent.get("variables") or {})})

        def do_PUT(self) -> None:
            with server.lock:
                server.files[self.path.removeprefix("/upload/")] = self._body()
            self._reply({})

        def do_GET(self) -> None:
            self._reply({})

        def _body(self) -> bytes:
            data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            return gzip.decompress(data) if self.headers.get("Content-Encoding") == "gzip" else data

        def _reply(self, content: Any) -> None:
            data = json.dumps(content).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            """Nothing of it is printed."""

    class Quiet(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: Any) -> None:
            """A client that hangs up between two requests is no error."""

    http = Quiet(("127.0.0.1", 0), Handler)
    server.url = f"http://127.0.0.1:{http.server_address[1]}"
    thread = threading.Thread(target=http.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()
