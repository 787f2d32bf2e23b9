"""Downloads of published files: verified, and either whole or not there."""

import hashlib
import http.client
import os
import pathlib
import tempfile
import urllib.request

from tqdm import auto as tqdm


class DownloadError(Exception):
    """Why a file could not be had, without a full stop: a reader says what to do about it."""


def fetch(url: str, md5: str, final: pathlib.Path, size: str) -> pathlib.Path:
    """Returns the file at `final`, downloading it first if it is not there.

    Args:
        url: where it is published.
        md5: what its content must have.
        final: where it goes; it appears there when it is complete and right.
        size: how much that is, for the person who waits, such as '2 GB'.

    Raises:
        DownloadError: if it cannot be downloaded, or something else arrives.
    """
    if final.is_file():
        return final
    print(f"Downloading {url} to {final} (about {size}, once)", flush=True)
    partial = None
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        with (
            urllib.request.urlopen(url, timeout=60) as response,
            tempfile.NamedTemporaryFile(dir=final.parent, suffix=".part", delete=False) as file,
        ):
            partial = pathlib.Path(file.name)
            arrived = _copy(response, file, final.name)
        if arrived != md5:
            raise DownloadError(f"{url} sent something else (md5 {arrived}, not {md5})")
        os.replace(partial, final)
    except (OSError, http.client.HTTPException) as error:  # URLError is a kind of OSError.
        reason = getattr(error, "reason", None) or error
        raise DownloadError(
            f"{final} is not there, and {url} could not be downloaded ({reason})"
        ) from error
    finally:
        if partial is not None:
            partial.unlink(missing_ok=True)
    return final


def _copy(response, file, name: str) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    size = int(response.headers.get("Content-Length") or 0) or None
    with tqdm.tqdm(total=size, unit="B", unit_scale=True, desc=name) as bar:
        while chunk := response.read(1 << 20):
            file.write(chunk)
            digest.update(chunk)
            bar.update(len(chunk))
    return digest.hexdigest()
