"""The client of the hub: bounds every request in time, and asks again where that may help.

Every request of the process goes through it, also those of transformers and datasets: importing this file installs it.
"""

import contextlib
import importlib
import os
import re
import sys
import time
from collections.abc import Iterator
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

from huggingface_hub import constants, get_session, set_client_factory
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
from huggingface_hub.utils._http import default_client_factory
from tqdm import tqdm

from lightning_app.errors import UserError

# The clients' HTTP library: httpx until huggingface_hub 2, then httpx2.
http: Any = importlib.import_module(HfHubHTTPError.__bases__[0].__module__.partition(".")[0])

ATTEMPTS = 5
_UNCONNECTED_ATTEMPTS = 3  # no name, no route, refused: seldom passes, and what is cached should serve soon
FIRST_WAIT_S = 1.0
_LONGEST_WAIT_S = 300.0
_HASTY_ATTEMPTS, _HASTY_WAIT_S = 3, 2.0
_GIVEN_UP_FOR_S = 60.0
PASSING = (408, 429, 500, 502, 503, 504)
IS_WANTED = "neuroglot.is_wanted"
_PROXIES = ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY")


class GaveUpError(OfflineModeIsEnabled):
    """Asking again did not help. The hub's clients take it as offline mode: they use what is cached, or pass it on."""


class _PatientClient(http.Client):
    """Bounds every request in time and asks again where that may help, saying so."""

    given_up: dict[str, tuple[float, str]] = {}  # noqa: RUF012 - of the process: a new client knows it, too
    is_hasty = False

    def send(self, request: Any, **options: Any) -> Any:
        limit = float(constants.HF_HUB_DOWNLOAD_TIMEOUT)
        timeout = request.extensions.get("timeout") or {}
        # The clients ask with "no time-out" in places, and then a hub that never answers holds the program for ever.
        bounded = {kind: min(timeout.get(kind) or limit, limit) for kind in ("connect", "read", "write", "pool")}
        request.extensions = {**request.extensions, "timeout": bounded}
        host = request.url.host
        if host != hub_host() and not request.extensions.get(IS_WANTED):
            return super().send(request, **options)  # what the clients count or look up elsewhere, and do without
        # One who has just waited in vain does not wait again for each of a model's ten files.
        is_away = bool(why_away(host))
        if is_away and self.is_hasty:
            raise GaveUpError(why_away(host))
        attempt = 0
        while True:
            attempt += 1
            attempts, asked_to_wait_s, cause = _HASTY_ATTEMPTS if self.is_hasty else ATTEMPTS, None, None
            try:
                response = super().send(request, **options)
            except (http.TimeoutException, http.NetworkError, http.RemoteProtocolError, http.ProxyError) as error:
                reason, cause = _reason(error, limit, request.url.scheme), error
                if isinstance(error, (http.ConnectError, http.ProxyError)):
                    attempts = _UNCONNECTED_ATTEMPTS
                elif self.is_hasty and isinstance(error, http.TimeoutException):
                    attempts = 1
            else:
                if response.status_code not in PASSING:
                    self.given_up.pop(host, None)
                    return response
                reason, asked_to_wait_s = f"answers {response.status_code}", _asked_to_wait_s(response)
                response.close()
            wait_s = FIRST_WAIT_S * 2 ** (attempt - 1) if asked_to_wait_s is None else asked_to_wait_s
            if (asked_to_wait_s or 0.0) > (_HASTY_WAIT_S if self.is_hasty else _LONGEST_WAIT_S):
                reason, attempts = f"{reason} and asks to wait {wait_s:.0f} s", attempt
            if is_away or attempt >= attempts:
                self.given_up[host] = (time.monotonic(), reason)
                raise GaveUpError(reason) from cause
            wait_and_say(host, reason, wait_s, attempt + 1, attempts)


@contextlib.contextmanager
def hasty() -> Iterator[None]:
    """Lets requests wait seconds at most, while the block lasts, and asks a host no more that did not answer once.

    For who wants to know how the hub is, and not to have something from it.
    """
    _PatientClient.is_hasty = True
    try:
        yield
    finally:
        _PatientClient.is_hasty = False


def ask_hub() -> float:
    """Returns the seconds that the hub took to answer anything.

    Raises:
        UserError: A proxy variable is no address.
        GaveUpError: It does not answer, or only with failures of its own.
    """
    started = time.monotonic()
    get_session().head(constants.ENDPOINT)
    return time.monotonic() - started


@contextlib.contextmanager
def offline() -> Iterator[None]:
    """Lets the hub's clients and datasets use what is on this machine alone, while the block lasts."""
    from datasets import config as datasets_config

    before = constants.HF_HUB_OFFLINE, datasets_config.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = datasets_config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE, datasets_config.HF_HUB_OFFLINE = before


def why_away(host: str) -> str:
    """Returns why a host was given up in the last minute, or an empty string."""
    when, reason = _PatientClient.given_up.get(host, (0.0, ""))
    return reason if time.monotonic() - when < _GIVEN_UP_FOR_S else ""


def wait_and_say(host: str, reason: str, wait_s: float, attempt: int, attempts: int) -> None:
    """Says on the first process what is waited for, and waits."""
    name = "the hub" if host == hub_host() else host
    say(f"{name} {reason}; asking again in {wait_s:.0f} s ({attempt} of {attempts})")
    time.sleep(wait_s)


def hub_host() -> str:
    """Returns the name of the machine that is asked: huggingface.co, or what HF_ENDPOINT names."""
    return urlsplit(constants.ENDPOINT).hostname or constants.ENDPOINT


def say(text: str) -> None:
    """Writes a line to stderr above any bar, on the first process only."""
    if all(os.environ.get(rank, "0") == "0" for rank in ("LOCAL_RANK", "SLURM_PROCID", "RANK")):
        tqdm.write(text, file=sys.stderr)
        sys.stderr.flush()


def _asked_to_wait_s(response: Any) -> float | None:
    """Returns the seconds that a server asks to wait by Retry-After (seconds or a date) or by the hub's rate limit."""
    asked = response.headers.get("retry-after", "").strip()
    if asked.isdigit():
        return float(asked)
    if limited := re.search(r"\br\s*=\s*0\s*;\s*t\s*=\s*(\d+)", response.headers.get("ratelimit", "")):
        return float(limited[1]) + 1
    try:
        return max(0.0, parsedate_to_datetime(asked).timestamp() - time.time()) if asked else None
    except ValueError:
        return None


def _reason(error: Exception, limit: float, scheme: str) -> str:
    if isinstance(error, http.TimeoutException):
        return f"did not answer within {limit:.0f} s"
    if isinstance(error, (http.ConnectError, http.ProxyError)):
        named = (f"{scheme}_PROXY".upper(), "ALL_PROXY")
        proxy = next((name for name in named if os.environ.get(name) or os.environ.get(name.lower())), None)
        return f"cannot be connected to ({' '.join(str(error).split())[:100]}{f', through {proxy}' if proxy else ''})"
    return "cut the connection"


def _patient_client() -> Any:
    """Returns the hub's default client with patience.

    Raises:
        UserError: A proxy variable is no address.
    """
    try:
        client = default_client_factory()
    except (ValueError, ImportError, http.InvalidURL) as error:
        named = [name for name in _PROXIES if os.environ.get(name) or os.environ.get(name.lower())]
        raise UserError(
            f"the proxy in {' or '.join(named) or 'the environment'} cannot be used: {' '.join(str(error).split())}; "
            "expected an address such as http://proxy.example:3128, or unset it"
        ) from error
    client.__class__ = _PatientClient
    return client


set_client_factory(_patient_client)
