"""Downloads published files once, with their checksums verified."""

import logging
import time
from pathlib import Path

import pooch
from tqdm.auto import tqdm

from experiments.core.console import print_line


class DownloadError(Exception):
    """Reason why a file cannot be downloaded, without a full stop; the reader adds what to do about it."""


def download_file(url: str, md5: str, final: Path, size: int) -> Path:
    """Returns the file at `final`; downloads it first if it is not there.

    Args:
        url: where the file is published.
        md5: checksum of its content.
        final: where it goes; it appears there when it is complete and correct.
        size: its approximate number of bytes; twice as many are refused.

    Raises:
        DownloadError: if the file cannot be downloaded or the server sends another one.
    """
    import requests  # Slow to import.

    if final.is_file():
        return final
    print_line(f"Downloading {url} to {final} (about {size / 1e6:,.0f} MB, once)")
    pooch.get_logger().setLevel(logging.WARNING)
    bar = _LimitedBar(size, max_bytes=2 * size)
    downloader = pooch.HTTPDownloader(progressbar=bar, chunk_size=1 << 20, timeout=60)
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


class _LimitedBar(tqdm):
    """Shows the progress and stops a download that would fill the disk; pooch itself has no limit."""

    def __init__(self, total: int, max_bytes: int):
        super().__init__(total=total, unit="B", unit_scale=True)
        self.max_bytes = max_bytes

    def __bool__(
        self,
    ) -> bool:  # Pooch ignores a false bar, and tqdm's is false for unknown lengths.
        return True

    def update(self, n: float | None = 1) -> bool | None:
        if self.n > self.max_bytes:
            raise ValueError(f"more than {self.max_bytes:,} bytes")
        return super().update(n)


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
