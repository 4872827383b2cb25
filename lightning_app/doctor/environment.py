"""What the environment says: how the hub is reached, as whom, and what slows the tokenizer down."""

import os

from huggingface_hub import constants, get_token

from lightning_app.doctor.finding import Findings, ok, warning
from lightning_app.doctor.setup import Setup
from lightning_app.hub import UnreachableError, ask_hub, hub_errors

_ADVICE = "check the network, HTTPS_PROXY and HF_ENDPOINT; HF_HUB_OFFLINE=1 takes what is cached without asking"
_OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")
_TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
_PROXIES = ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY", "NO_PROXY")
_OFF = ("", "0", "false", "no", "off")


def check_hub(setup: Setup) -> Findings:
    """The hub answers, or nothing is wanted of it."""
    offline = [name for name in _OFFLINE if os.environ.get(name, "").lower() not in _OFF]
    if offline:
        said = f"{' and '.join(offline)} set: the hub is not asked, what is cached has to do"
        yield warning("hub", said, f"unset {' '.join(offline)}") if setup.asks_hub else ok("hub", said)
        return
    through = f"; {proxies}" if (proxies := _proxies()) else ""
    try:
        with hub_errors("the hub", _ADVICE):
            seconds = ask_hub()
    except UnreachableError as error:
        said = f"{error}{through}"
        yield warning("hub", said) if setup.asks_hub else ok("hub", f"{said}; nothing here wants it")
    else:
        yield ok("hub", f"{_host(constants.ENDPOINT)} answers in {seconds:.2f} s{through}")


def _proxies() -> str:
    """Returns the proxies that are set, without the passwords in their addresses."""
    found = {name: os.environ.get(name) or os.environ.get(name.lower()) for name in _PROXIES}
    return ", ".join(f"{name} {_host(value)}" for name, value in found.items() if value)


def _host(address: str) -> str:
    """Returns an address without scheme, user, password and path.

    >>> _host("http://me:secret@proxy.example:3128/x"), _host("me:secret@proxy.example"), _host("localhost,.example")
    ('proxy.example:3128', 'proxy.example', 'localhost,.example')
    """
    return address.rpartition("://")[2].rpartition("@")[2].partition("/")[0]


def check_token(setup: Setup) -> Findings:
    """There is a token; its value is never looked at, and what it may read others find out."""
    if get_token() is not None:
        named = next((name for name in _TOKENS if os.environ.get(name)), None)
        yield ok("token", f"there is one, of {named}" if named else "there is one, of hf auth login")
    elif setup.asks_hub:
        yield warning("token", "there is none: what is gated or private cannot be read", "hf auth login")
    else:
        yield ok("token", "there is none, and nothing here needs one")


def check_tokenizer_threads(setup: Setup) -> Findings:
    """Tokenizers use all cores."""
    value = os.environ.get("TOKENIZERS_PARALLELISM", "true")
    if value.lower() in _OFF:
        said = f"TOKENIZERS_PARALLELISM is {value}: text is tokenised on one core"
        yield warning("tokenising", said, "unset TOKENIZERS_PARALLELISM")
    else:
        yield ok("tokenising", "on all cores")
