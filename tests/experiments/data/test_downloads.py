import hashlib
import os
import time

import pytest

from experiments.data import downloads

CONTENT = bytes(range(256)) * 8192  # 2 MB: more than one chunk
MD5 = hashlib.md5(CONTENT).hexdigest()


def download(url, folder):
    return downloads.download_file(url, MD5, folder / "a.zip", len(CONTENT))


def send_endlessly():
    while True:
        yield bytes(1 << 20)


def test_file_is_downloaded_once(serve, tmp_path):
    url, requests = serve(CONTENT)
    for _ in range(2):
        assert download(url, tmp_path / "new").read_bytes() == CONTENT
    assert len(requests) == 1
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.zip"]


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        ({"content": CONTENT[:-1], "length": len(CONTENT)}, "could not be downloaded"),
        ({"content": CONTENT[:-1] + b"x"}, "sent another file"),
        ({"content": send_endlessly}, "sent another file"),
        ({"status": 404}, "404"),
    ],
)
def test_bad_answers_leave_nothing(serve, tmp_path, answer, says):
    with pytest.raises(downloads.DownloadError, match=says):
        download(serve(**answer)[0], tmp_path)
    assert not list(tmp_path.iterdir())
    assert download(serve(CONTENT)[0], tmp_path).read_bytes() == CONTENT


def test_no_network_is_reported(tmp_path):
    with pytest.raises(downloads.DownloadError, match="refused"):
        download("http://127.0.0.1:9/file", tmp_path)


def test_leftovers_are_deleted(serve, tmp_path):
    for name, age in (("tmpold", 7200), ("tmprecent", 0)):
        (tmp_path / name).write_bytes(b"part")
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    download(serve(CONTENT)[0], tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.zip", "tmprecent"]
