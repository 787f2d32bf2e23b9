import hashlib
import os
import subprocess
import sys
import time

import pytest

from experiments.data import downloads

CONTENT = bytes(range(256)) * 8192  # 2 MB: more than one piece
MD5 = hashlib.md5(CONTENT).hexdigest()


def left(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_arrives_whole_and_once(serve, tmp_path):
    url, requests = serve(CONTENT)
    for _ in range(2):
        final = downloads.download_file(url, MD5, tmp_path / "new" / "a.zip", len(CONTENT))
        assert final.read_bytes() == CONTENT
    assert len(requests) == 1 and left(tmp_path / "new") == ["a.zip"]


def test_a_length_that_is_not_announced_is_no_problem(serve, tmp_path):
    url, _ = serve(lambda: [CONTENT])
    assert (
        downloads.download_file(url, MD5, tmp_path / "a.zip", len(CONTENT)).read_bytes() == CONTENT
    )


def without_end():
    while True:
        yield bytes(1 << 20)


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        ({"content": CONTENT[:-1], "length": len(CONTENT)}, "ended after 2,097,151 of 2,097,152"),
        ({"content": b"", "length": len(CONTENT)}, "ended after 0 of"),
        ({"content": CONTENT[:-1]}, "something else .md5"),
        ({"content": CONTENT[:-1] + b"x"}, "something else .md5"),
        ({"content": b"<html>Please log in</html>"}, "something else .md5"),
        ({"content": without_end}, "something else .more than 4,194,304 bytes"),
        ({"content": CONTENT, "length": "many"}, "could not be downloaded"),
        ({"status": 404}, "404"),
        ({"status": 503}, "503"),
    ],
)
def test_what_is_not_the_file_leaves_nothing_and_the_next_try_is_good(
    serve, tmp_path, answer, says
):
    url, _ = serve(**answer)
    with pytest.raises(downloads.DownloadError, match=says):
        downloads.download_file(url, MD5, tmp_path / "a.zip", len(CONTENT))
    assert left(tmp_path) == []
    url, _ = serve(CONTENT)
    assert (
        downloads.download_file(url, MD5, tmp_path / "a.zip", len(CONTENT)).read_bytes() == CONTENT
    )


def test_a_killed_download_leaves_no_file_of_that_name_and_is_swept_away(serve, tmp_path):
    def stalling():
        yield CONTENT[: 1 << 20]
        time.sleep(30)

    url, requests = serve(stalling, length=len(CONTENT))
    code = (
        "import pathlib, sys; from experiments.data import downloads; "
        "downloads.fetch(sys.argv[1], sys.argv[2], pathlib.Path(sys.argv[3]), 2_000_000)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, url, MD5, str(tmp_path / "a.zip")],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 60
        while not any(path.stat().st_size for path in tmp_path.iterdir()):
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.02)
    finally:
        process.kill()
        process.wait()
    assert requests
    (partial,) = tmp_path.iterdir()
    assert partial.suffix == ".part"
    url, _ = serve(CONTENT)
    assert (
        downloads.download_file(url, MD5, tmp_path / "a.zip", len(CONTENT)).read_bytes() == CONTENT
    )
    assert partial.exists()  # It could be another process's, at work.
    (tmp_path / "a.zip").unlink()
    os.utime(partial, (0, 0))
    downloads.download_file(url, MD5, tmp_path / "a.zip", len(CONTENT))
    assert left(tmp_path) == ["a.zip"]
