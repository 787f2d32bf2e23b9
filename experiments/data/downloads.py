"""Downloads published files once, with their checksums verified."""

import logging
import time
from pathlib import Path

import pooch


class DownloadError(Exception):
    """Reason why a file cannot be downloaded, without a full stop; the reader adds what to do about it."""


def download_file(url: str, md5: str, final: Path, size: int) -> Path:
    """Returns the file at `final`; downloads it first if it is not there.

    Args:
        url: where the file is published.
        md5: checksum of its content.
        final: where it goes; it appears there when it is complete and correct.
        size: its approximate number of bytes, for the message.

    Raises:
        DownloadError: if the file cannot be downloaded or the server sends another one.
    """
    import requests  # Slow to import.

    if final.is_file():
        return final
    print(f"Downloading {url} to {final} (about {size / 1e6:,.0f} MB, once)", flush=True)
    pooch.get_logger().setLevel(logging.WARNING)
    downloader = pooch.HTTPDownloader(progressbar=True, chunk_size=1 << 20, timeout=60)
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        _delete_leftovers(final.parent)
        pooch.retrieve(url, f"md5:{md5}", final.name, final.parent, downloader=downloader)
    except (OSError, requests.RequestException) as error:
        raise DownloadError(
            f"{final} does not exist, and {url} could not be downloaded ({_find_reason(error)})"
        ) from error
    except ValueError as error:
        raise DownloadError(f"{url} sent another file than the one with MD5 {md5}") from error
    return final


def _find_reason(error: BaseException) -> str:
    """Returns the message of the innermost error, such as 'Connection refused'."""
    while error.__context__ is not None:
        error = error.__context__
    return str(error) or type(error).__name__


def _delete_leftovers(folder: Path) -> None:
    """Deletes the temporary files of killed downloads; one that is still running was written to recently."""
    for leftover in folder.glob("tmp*"):
        if time.time() - leftover.stat().st_mtime > 3600:
            leftover.unlink(missing_ok=True)
