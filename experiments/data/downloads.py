"""Downloads of published files: verified, and either whole or not there."""

import contextlib
import hashlib
import http.client
import os
import pathlib
import tempfile
import time
import urllib.error
import urllib.request

from tqdm import auto as tqdm


class DownloadError(Exception):
    """Why a file could not be had, without a full stop: a reader says what to do about it."""


def download_file(url: str, md5: str, final: pathlib.Path, size: int) -> pathlib.Path:
    """Returns the file at `final`, downloading it first if it is not there.

    Args:
        url: where it is published.
        md5: what its content must have.
        final: where it goes; it appears there when it is complete and right.
        size: about how many bytes that is, for the person who waits; twice as many are refused.

    Raises:
        DownloadError: if it cannot be downloaded, or something else arrives.
    """
    if final.is_file():
        return final
    print(f"Downloading {url} to {final} (about {size / 1e6:,.0f} MB, once)", flush=True)
    partial = None
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        _sweep(final)
        with (
            urllib.request.urlopen(url, timeout=60) as response,
            tempfile.NamedTemporaryFile(
                dir=final.parent, prefix=f"{final.name}.", suffix=".part", delete=False
            ) as file,
        ):
            partial = pathlib.Path(file.name)
            arrived = _copy(response, file, url, final.name, 2 * size)
        if arrived != md5:
            raise DownloadError(f"{url} sent something else (md5 {arrived}, not {md5})")
        os.replace(partial, final)
    # URLError is a kind of OSError; a header that is no number, of ValueError.
    except (OSError, http.client.HTTPException, ValueError) as error:
        http_error = isinstance(
            error, urllib.error.HTTPError
        )  # Its own words have the number, too.
        reason = error if http_error else getattr(error, "reason", None) or error
        raise DownloadError(
            f"{final} is not there, and {url} could not be downloaded ({reason})"
        ) from error
    finally:
        if partial is not None:
            partial.unlink(missing_ok=True)
    return final


def _copy(response, file, url: str, name: str, most: int) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    size, arrived = int(response.headers.get("Content-Length") or 0) or None, 0
    with tqdm.tqdm(total=size, unit="B", unit_scale=True, desc=name) as bar:
        while chunk := response.read(1 << 20):
            arrived += len(chunk)
            if arrived > most:
                raise DownloadError(f"{url} sent something else (more than {most:,} bytes)")
            file.write(chunk)
            digest.update(chunk)
            bar.update(len(chunk))
    if size and arrived < size:
        raise DownloadError(f"{url} ended after {arrived:,} of {size:,} bytes; start again")
    return digest.hexdigest()


def _sweep(final: pathlib.Path) -> None:
    # What a killed download left behind; one that is still at work has been written to lately.
    for left in final.parent.glob(f"{final.name}.*.part"):
        with contextlib.suppress(OSError):
            if time.time() - left.stat().st_mtime > 3600:
                left.unlink()
