"""prepare-iwslt14.sh before it has its archive: room on the disk, and a download from a server of the test's own."""

from __future__ import annotations

import hashlib
import http.server
import os
import random
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from preparing import prepare, refused


@pytest.mark.parametrize(("free", "enough"), [(399999, False), (400000, True)])
def test_too_little_room_on_the_disk_is_refused(free: int, enough: bool, tmp_path: Path):
    script = tmp_path / "programs/df"
    script.parent.mkdir()
    header = "Filesystem 1024-blocks Used Available Capacity Mounted on"
    script.write_text(f"#!/bin/sh\nprintf '{header}\\nnone 900000 500000 {free} 56%% /\\n'\n")
    script.chmod(0o755)
    options = ["--archive", script, "--output", tmp_path / "out"]  # which is no archive, as the next step finds
    done = prepare(*options, PATH=f"{script.parent}:{os.environ['PATH']}")
    refused(done, "whole de-en.tgz" if enough else f"must be 400000 kB free for {tmp_path}/out, but there are {free}.")
    assert not list((tmp_path / "out").iterdir())


class Server(http.server.ThreadingHTTPServer):
    """Serves one file, from where it is asked to, as the servers of the archive do."""

    def __init__(self, content: bytes) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.content = content
        self.ranges: list[str | None] = []
        self.sent = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/de-en.tgz"


class Answer(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        if not self.path.endswith("/de-en.tgz"):
            return self.send_error(404)
        asked, whole = self.headers["Range"], self.server.content
        self.server.ranges.append(asked)
        first = int(asked.removeprefix("bytes=").removesuffix("-")) if asked else 0
        if first >= len(whole):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(whole)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206 if asked else 200)
        if asked:
            self.send_header("Content-Range", f"bytes {first}-{len(whole) - 1}/{len(whole)}")
        self.send_header("Content-Length", str(len(whole) - first))
        self.end_headers()
        self.server.sent += len(whole[first:])
        self.wfile.write(whole[first:])

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server(random.Random(0).randbytes(2000)) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def fetch(url: str, out: Path) -> subprocess.CompletedProcess[str]:
    """With a checksum that nothing has, which ends it after the download: what comes next is the same for any archive."""
    return prepare("--url", url, "--output", out, "--sha256", "0" * 64, no_proxy="127.0.0.1")


def assert_fetched(done: subprocess.CompletedProcess[str], out: Path, content: bytes) -> None:
    refused(done, f"must be {'0' * 64}, but is {hashlib.sha256(content).hexdigest()}")
    assert [path.name for path in out.iterdir()] == ["de-en.tgz"]
    assert (out / "de-en.tgz").read_bytes() == content


@pytest.mark.parametrize("there", [None, 0, 700])
def test_a_download_asks_for_what_it_lacks_and_no_more(there: int | None, server: Server, tmp_path: Path):
    whole, out = server.content, tmp_path / "out"
    out.mkdir()
    if there is not None:
        (out / "de-en.tgz.part").write_bytes(whole[:there])
    assert_fetched(fetch(server.url, out), out, whole)
    assert server.ranges == [f"bytes={there}-" if there else None]
    assert server.sent == len(whole) - (there or 0)
    assert_fetched(fetch(server.url, out), out, whole)
    assert len(server.ranges) == 1  # the file that is there is not fetched again


def test_a_download_that_was_killed_at_its_very_end_goes_on(server: Server, tmp_path: Path):
    """All is there but for its name; servers answer 416 to who asks for what comes after the end."""
    out = tmp_path / "out"
    out.mkdir()
    (out / "de-en.tgz.part").write_bytes(server.content)
    assert_fetched(fetch(server.url, out), out, server.content)


def test_an_address_without_the_archive_is_refused_and_what_was_fetched_stays(server: Server, tmp_path: Path):
    part = tmp_path / "out/de-en.tgz.part"
    part.parent.mkdir()
    part.write_bytes(b"begun")
    refused(fetch(server.url + "x", part.parent), server.url + "x", "must be reachable")
    assert part.read_bytes() == b"begun"
