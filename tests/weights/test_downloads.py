"""Fetching files. Evidence: a server on this machine that cuts connections, with and without ranges."""

import hashlib
import http.server
import threading

import pytest

from workbench import bars
from workbench.errors import WorkbenchError
from workbench.weights.checkpoints import load_checkpoint
from workbench.weights.downloads import cache_folder, fetch

DATA = bytes(range(256)) * 5000
MD5 = "md5:" + hashlib.md5(DATA).hexdigest()
SHA = "sha256:" + hashlib.sha256(DATA).hexdigest()[:8]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def server():
    """Serve DATA.

    `requested` lists the Range of every request. `cut` ends an answer after so many bytes. `ranges` honours Range.
    """

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            wanted = self.headers.get("Range")
            self.server.requested.append(wanted)
            if self.path == "/missing.bin":
                self.send_error(404)
                return
            start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and self.server.ranges else 0
            if start >= len(DATA):
                self.send_error(416)
                return
            body = DATA[start:]
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[: self.server.cut] if self.server.cut else body)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listener:
        listener.requested, listener.cut, listener.ranges = [], None, True
        threading.Thread(target=listener.serve_forever, daemon=True).start()
        listener.url = f"http://127.0.0.1:{listener.server_port}/weights.bin"
        yield listener
        listener.shutdown()


def test_a_file_is_fetched_once(server, cache):
    first = fetch(server.url, MD5, size=len(DATA), progress=False)
    assert first.read_bytes() == DATA and first.parent == cache == cache_folder()
    assert fetch(server.url, SHA, progress=False) == first
    assert server.requested == [None]
    assert not list(cache.glob("*.part"))


def test_an_interrupted_download_is_continued(server, cache):
    server.cut = 500_000
    with pytest.raises(WorkbenchError, match=r"weights\.bin.*500,000 bytes"):
        fetch(server.url, MD5, progress=False)
    part = cache / "weights.bin.part"
    assert part.read_bytes() == DATA[:500_000]
    server.cut = None
    assert fetch(server.url, MD5, progress=False).read_bytes() == DATA
    assert server.requested == [None, "bytes=500000-"]


def test_a_server_without_ranges_starts_over(server, cache):
    cache.mkdir()
    (cache / "weights.bin.part").write_bytes(b"x" * 1000)
    server.ranges = False
    assert fetch(server.url, MD5, progress=False).read_bytes() == DATA


def test_a_whole_part_is_only_checked(server, cache):
    cache.mkdir()
    (cache / "weights.bin.part").write_bytes(DATA)
    assert fetch(server.url, MD5, progress=False).read_bytes() == DATA


def test_a_file_that_is_not_the_released_one_is_refused_and_removed(server, cache):
    with pytest.raises(WorkbenchError, match=f"md5.*{MD5[4:]}.*{'0' * 32}"):
        fetch(server.url, "md5:" + "0" * 32, progress=False)
    assert not list(cache.glob("weights.bin*part")) and not (cache / "weights.bin").exists()
    with pytest.raises(WorkbenchError, match=r"1,280,000 bytes.*\b7\b"):
        fetch(server.url, MD5, size=7, progress=False)


def test_a_spoilt_file_in_the_cache_is_refused(server, cache):
    fetch(server.url, MD5, progress=False).write_bytes(b"spoilt")
    with pytest.raises(WorkbenchError, match=rf"weights\.bin.*md5.*{MD5[4:]}"):
        fetch(server.url, MD5, progress=False)


def test_a_missing_page_is_reported(server):
    with pytest.raises(WorkbenchError, match=r"missing\.bin.*404"):
        fetch(server.url.replace("weights", "missing"), MD5, progress=False)


def test_without_a_network_the_message_says_where_to_put_the_file(cache, monkeypatch):
    import urllib.error
    import urllib.request

    def offline(*_, **__):
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr(urllib.request, "urlopen", offline)
    with pytest.raises(WorkbenchError) as error:
        load_checkpoint("nfnet_f0")
    text = str(error.value)
    assert "F0_haiku.npz" in text and "storage.googleapis.com" in text and "Name or service not known" in text
    assert str(cache / "F0_haiku.npz") in text and "\n" not in text


def test_progress_is_shown(server, capsys, monkeypatch):
    monkeypatch.setattr(bars, "EVERY", 0)  # seconds between lines
    fetch(server.url, MD5)
    assert "weights.bin" in capsys.readouterr().err
