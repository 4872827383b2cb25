"""The methods by name; a new one is added here."""

from collections.abc import Mapping
from dataclasses import fields

from lightning_app.errors import UserError, did_you_mean
from lightning_app.methods.dense import FFNTraining, FullTraining
from lightning_app.methods.method import Method
from lightning_app.methods.subnetwork import SubnetworkTraining

METHODS: dict[str, type[Method]] = {method.name: method for method in (SubnetworkTraining, FFNTraining, FullTraining)}
DEFAULT = SubnetworkTraining.name


def build_method(name: str, keys: Mapping[str, object]) -> Method:
    """Returns the method of a name, with those of ``keys`` that are its own.

    Args:
        name: As ``--model.method`` gives it.
        keys: Of all methods: a configuration holds every key, and each method reads its own.

    Raises:
        UserError: There is no such method, or no method has such a key.
    """
    if name not in METHODS:
        raise UserError(f"--model.method is {name}; expected one of {', '.join(METHODS)}{did_you_mean(name, METHODS)}")
    known = {field.name for method in METHODS.values() for field in fields(method)}
    if unknown := sorted(set(keys) - known):
        raise UserError(f"no method has a key {unknown[0]}{did_you_mean(unknown[0], known)}")
    own = {field.name for field in fields(METHODS[name])}
    return METHODS[name](**{key: value for key, value in keys.items() if key in own})
