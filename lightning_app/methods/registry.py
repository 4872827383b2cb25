"""The methods by name; a new one is added here."""

from dataclasses import fields

from lightning_app.errors import UserError, did_you_mean
from lightning_app.files import JSON
from lightning_app.methods.adapters import IA3, DoRA, LoRA, LoRAOfEqualSize, LoRAOnAllLinears, SHiRA
from lightning_app.methods.dense import FFNTraining, FullTraining, HalfFineTuning, LastLayers
from lightning_app.methods.method import Method
from lightning_app.methods.source_shielded import SourceShieldedUpdates
from lightning_app.methods.subnetwork import (
    GradientNeurons,
    RandomNeurons,
    RandomNeuronsPerLayer,
    SubnetworkTraining,
)

METHODS: dict[str, type[Method]] = {
    method.name: method
    for method in (
        SubnetworkTraining, RandomNeurons, RandomNeuronsPerLayer, GradientNeurons,
        FFNTraining, FullTraining, LastLayers, HalfFineTuning, SourceShieldedUpdates,
        LoRA, LoRAOnAllLinears, LoRAOfEqualSize, DoRA, SHiRA, IA3,
    )
}  # fmt: skip
DEFAULT = SubnetworkTraining.name


def find_method(name: str) -> type[Method]:
    """Returns the method of a name.

    Raises:
        UserError: There is none.
    """
    if name not in METHODS:
        raise UserError(
            f"--model.method is {name}; expected one of {', '.join(METHODS)}{did_you_mean(str(name), METHODS)}"
        )
    return METHODS[name]


def method_keys(name: str) -> dict[str, object]:
    """Returns the keys of a method with their defaults; raises `UserError` where there is no such method."""
    return {field.name: field.default for field in fields(find_method(name))}


def build_method(name: str, keys: JSON) -> Method:
    """Returns the method of a name, with those of ``keys`` that are its own.

    Args:
        name: As ``--model.method`` gives it.
        keys: Of all methods: a configuration holds every key, and each method reads its own.

    Raises:
        UserError: There is no such method, no method has such a key, or a key of another method is set.
    """
    own = method_keys(name)
    for key, value in keys.items():
        owners = [other for other in METHODS if key in method_keys(other)]
        if not owners:
            known = {key for other in METHODS for key in method_keys(other)}
            raise UserError(f"no method has a key {key}{did_you_mean(key, known)}")
        default = method_keys(owners[0])[key]
        if key not in own and _plain(value) != _plain(default):
            raise UserError(
                f"--model.{key} is {value}, but --model.method {name} has no such key; it is one of "
                f"{', '.join(owners)}{did_you_mean(name, owners)}"
            )
    return METHODS[name](**{key: value for key, value in keys.items() if key in own})


def _plain(value: object) -> object:
    return list(value) if isinstance(value, (list, tuple)) else value
