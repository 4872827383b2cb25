"""Processes without a Trainer, for the verbs that are not Lightning's, from the same ``trainer`` keys."""

from jsonargparse import Namespace
from lightning.fabric import Fabric
from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.fabric.utilities.exceptions import MisconfigurationException

from lightning_app.errors import UserError
from lightning_app.model.base import base_dtype
from lightning_app.training.trainer import require_srun


def make_fabric(trainer: Namespace) -> Fabric:
    """Returns a Fabric on the devices, nodes and precision of the ``trainer`` keys; it starts no process yet.

    Raises:
        UserError: Lightning refuses the keys.
    """
    base_dtype(trainer.precision)
    if not isinstance(trainer.strategy, str):
        raise UserError(f"--trainer.strategy is {type(trainer.strategy).__name__}; this verb takes a name, such as ddp")
    if SLURMEnvironment.detect():
        require_srun()
    keys = {key: trainer[key] for key in ("accelerator", "devices", "num_nodes", "strategy", "precision")}
    try:
        return Fabric(**keys)
    except (MisconfigurationException, TypeError, ValueError) as error:
        raise UserError(f"Lightning refuses the --trainer keys: {' '.join(str(error).split())[:300]}") from error
