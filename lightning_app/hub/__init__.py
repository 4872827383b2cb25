"""The Hugging Face hub: asked with time-outs and patience, and what it refuses said in one line."""

from lightning_app.hub.client import ask_hub, hasty, hub_host, wait_and_say
from lightning_app.hub.refusals import UnreachableError, has_given_up, hub_errors, unloadable
from lightning_app.hub.web_file import download, require_there

__all__ = [
    "UnreachableError",
    "ask_hub",
    "download",
    "has_given_up",
    "hasty",
    "hub_errors",
    "hub_host",
    "require_there",
    "unloadable",
    "wait_and_say",
]
