"""The Hugging Face hub: asked with time-outs and patience, and what it refuses said in one line."""

from lightning_app.hub.client import ask_hub, hasty, hub_host, offline, wait_and_say
from lightning_app.hub.publishing import (
    fetch_published,
    is_published,
    local_file,
    publish,
    published_card,
    require_may_publish,
    require_repository,
)
from lightning_app.hub.refusals import UnreachableError, has_given_up, hub_errors, unloadable
from lightning_app.hub.web_file import download, require_there

__all__ = [
    "UnreachableError",
    "ask_hub",
    "download",
    "fetch_published",
    "has_given_up",
    "hasty",
    "hub_errors",
    "hub_host",
    "is_published",
    "local_file",
    "offline",
    "publish",
    "published_card",
    "require_may_publish",
    "require_repository",
    "require_there",
    "unloadable",
    "wait_and_say",
]
