"""Files of the web that no hub keeps."""

import time
from pathlib import Path
from urllib.parse import urlsplit

from huggingface_hub import get_session
from huggingface_hub.errors import OfflineModeIsEnabled

from lightning_app.errors import UserError
from lightning_app.hub.client import ATTEMPTS, FIRST_WAIT_S, IS_WANTED, http, say, wait_and_say
from lightning_app.hub.refusals import unreachable

_SAY_EVERY_S = 10.0


def download(url: str, path: Path, advice: str) -> None:
    """Writes a file of the web to ``path``; goes on where a connection broke and says every ten seconds how far it is.

    Raises:
        UserError: There is no such file, or it cannot be reached; ``path`` may hold a part of it.
    """
    attempt = 0
    path.unlink(missing_ok=True)
    while True:
        attempt += 1
        try:
            _fetch_rest(url, path)
            return
        except (http.TimeoutException, http.NetworkError, http.RemoteProtocolError) as error:
            if attempt >= ATTEMPTS:
                raise unreachable(url, error, advice) from error
            wait_s = FIRST_WAIT_S * 2 ** (attempt - 1)
            wait_and_say(urlsplit(url).hostname or url, "stopped sending", wait_s, attempt + 1, ATTEMPTS)
        except (http.InvalidURL, http.UnsupportedProtocol, http.DecodingError, http.TooManyRedirects) as error:
            raise UserError(f"cannot download {url}: {' '.join(str(error).split())}; check the address") from error
        except OfflineModeIsEnabled as error:
            raise unreachable(url, error, advice) from error


def require_there(url: str, advice: str) -> None:
    """Raises `UserError` where a file of the web cannot be had; asks for its head only."""
    try:
        response = get_session().head(url, follow_redirects=True, extensions={IS_WANTED: True})
    except (http.HTTPError, http.InvalidURL, OfflineModeIsEnabled) as error:
        raise unreachable(url, error, advice) from error
    if response.status_code != 200:
        raise UserError(f"{url} answers {response.status_code}; check the address")


def _fetch_rest(url: str, path: Path) -> None:
    done = path.stat().st_size if path.exists() else 0
    headers = {"Accept-Encoding": "identity", **({"Range": f"bytes={done}-"} if done else {})}
    with get_session().stream("GET", url, headers=headers, extensions={IS_WANTED: True}) as response:
        if response.status_code not in (200, 206):
            raise UserError(f"{url} answers {response.status_code}; check the address")
        done = done if response.status_code == 206 else 0
        total = done + int(response.headers.get("content-length", 0))
        started = said_at = time.monotonic()
        with path.open("r+b" if path.exists() else "wb") as file:
            file.truncate(done)
            file.seek(done)
            for chunk in response.iter_bytes(1 << 20):
                file.write(chunk)
                if time.monotonic() - said_at >= _SAY_EVERY_S:
                    said_at = time.monotonic()
                    say(_progress(url.rsplit("/", 1)[-1], file.tell(), total, file.tell() - done, said_at - started))


def _progress(name: str, there: int, total: int, fetched: int, seconds: float) -> str:
    """Returns a line on a download.

    >>> _progress("x.gz", 4_000_000, 25_000_000, 3_000_000, 10.0)
    'downloading x.gz: 4.0 of 25.0 MB, 70 s left'
    """
    if total <= there:
        return f"downloading {name}: {there / 1e6:.1f} MB"
    left_s = (total - there) * seconds / fetched
    return f"downloading {name}: {there / 1e6:.1f} of {total / 1e6:.1f} MB, {left_s:.0f} s left"
