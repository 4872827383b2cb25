"""What can be refused before text is tokenised, weights are loaded or a step is made."""

from pathlib import Path
from typing import Any

from lightning_app.atlas import Atlas
from lightning_app.base import base_without_weights, identity_of
from lightning_app.errors import UserError
from lightning_app.ffn import find_gated_ffns
from lightning_app.subnetwork import Subnetwork


def require_trainable(base: str, revision: str | None, subnetwork: Path | None, atlas: Path | None) -> None:
    """Checks a base by its configuration alone, and that the files named for it belong to a model of its shape.

    Raises:
        UserError: The architecture has no gated FFNs, or a file does not fit it.
    """
    model = base_without_weights(base, revision)
    find_gated_ffns(model)
    identity = identity_of(model, base)
    if subnetwork is not None:
        Subnetwork.load(subnetwork).model.require_same(identity, "subnetwork", subnetwork)
    elif atlas is not None and atlas.exists():
        Atlas.load(atlas).model.require_same(identity, "atlas", atlas)


def require_belonging(found: dict[str, Any], mine: dict[str, Any], engine: str | None) -> None:
    """Checks that a checkpoint was made by a run like this one.

    Args:
        found: What the checkpoint says of itself.
        mine: What it must say: method, base, subnetwork and what of it is trained.
        engine: The engine whose optimiser states are wanted, or None where only weights are.

    Raises:
        UserError: It was not.
    """
    if not found:
        raise UserError("the checkpoint was not made by Neuroglot; give one from a run's checkpoints folder")
    for key, expected in mine.items():
        if found.get(key) != expected:
            raise UserError(
                f"the checkpoint belongs to another {key}: found {found.get(key) or 'none'}, "
                f"expected {expected or 'none'}; give this run's checkpoint, or its --model.subnetwork"
            )
    if engine is not None and found["engine"] != engine:
        raise UserError(
            f"the checkpoint's optimiser states are those of the {found['engine']} engine; go on with "
            f"--model.engine {found['engine']}"
        )
