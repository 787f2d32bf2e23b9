import contextlib
import hashlib
import http.server
import pathlib
import threading

import pytest
from ml_collections import ConfigDict

from experiments import data
from experiments.core.errors import UserError

SHARED = pathlib.Path(__file__).parents[4] / "shared" / "data"


@pytest.fixture
def make_config(tmp_path):
    """Returns a function that makes the data part of a configuration."""

    def make(**fields):
        usual = {
            "name": "digits",
            "source": "",
            "dir": str(tmp_path / "prepared"),
            "variant": "",
            "validation": 0.1,
            "test": 0.2,
            "limit": 0,
        }
        given = {k: str(v) if isinstance(v, pathlib.Path) else v for k, v in fields.items()}
        return ConfigDict(usual | given)

    return make


@pytest.fixture
def load_voc(make_config):
    """Returns a function that loads a source, as VOC 2012 unless it is named otherwise."""

    def load(source, name="voc2012"):
        return data.load(make_config(name=name, source=source), 0)

    return load


@pytest.fixture
def real_data():
    """Returns a function from a path below the real data to the path; it skips where absent."""

    def find(path):
        if not (SHARED / path).exists():
            pytest.skip(f"the real data is not here ({SHARED / path})")
        return SHARED / path

    return find


@pytest.fixture
def serve():
    """Returns a function that answers on this machine, and gives the URL and the list of requests.

    The answer is `content`, of which `length` bytes are announced; a generator is sent until the client
    has had enough.
    """
    servers = []

    def start(content=b"", status=200, length=None):
        requests = []

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                requests.append(self.path)
                self.send_response(status)
                if length is not None or isinstance(content, bytes):
                    self.send_header("Content-Length", len(content) if length is None else length)
                self.end_headers()
                with contextlib.suppress(OSError):  # The client may leave.
                    for part in [content] if isinstance(content, bytes) else content():
                        self.wfile.write(part)

            def log_message(self, *args):
                pass

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}).start()
        return f"http://127.0.0.1:{server.server_port}/file", requests

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def check_download(serve, monkeypatch, tmp_path):
    """Returns a function that puts the download of a reader through what can happen to one."""

    def check(module, load, content):
        folder = tmp_path / "prepared" / "downloads"
        monkeypatch.setattr(module, "MD5", hashlib.md5(content).hexdigest())
        monkeypatch.setattr(module, "SIZE", len(content))
        url, _ = serve(b"<html>Please log in</html>")
        monkeypatch.setattr(module, "URL", url)
        with pytest.raises(UserError, match="sent another file") as error:
            load()
        assert url in str(error.value) and "--config.data.source" in str(error.value)
        assert not list(folder.iterdir())
        url, requests = serve(content)
        monkeypatch.setattr(module, "URL", url)
        for _ in range(2):
            assert len(load().splits["test"]) == 6
        assert len(requests) == 1

    return check
