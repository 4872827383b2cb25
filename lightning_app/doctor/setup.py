"""What is examined: a run as it is configured, on this machine."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from lightning_app.errors import UserError
from lightning_app.languages import Language
from lightning_app.planning.checks import Checked
from lightning_app.planning.plan import Plan
from lightning_app.planning.planner import Launch, Planner


@dataclass
class Setup:
    """A run as it is configured, with nothing loaded.

    Attributes:
        settings: The keys as they were given.
        run: What they describe; None where they cannot be used.
        refusal: Why they cannot.
        launch: On what it would run; None where that is refused.
        devices: How many there are on each node.
        launch_refusal: Why it is refused.
    """

    settings: Any
    run: Checked | None
    refusal: str = ""
    launch: Launch | None = None
    devices: int = 1
    launch_refusal: str = ""

    @property
    def languages(self) -> list[Language]:
        """Languages whose text the run may read: of training, and those of the pool."""
        if self.run is None:
            return []
        trained = [share.language for share in self.run.data.shares]
        pool = self.run.profiling.pool(self.run.module.languages) if self.run.module.needs_selection else []
        return list(dict.fromkeys([*trained, *pool]))

    @property
    def plan(self) -> Plan | None:
        """What the run would take; None where something is in the way."""
        return self._planned[0]

    @property
    def plan_refusal(self) -> str:
        """What is in the way of a plan; empty where that is something else that could not be read."""
        return self._planned[1]

    @cached_property
    def _planned(self) -> tuple[Plan | None, str]:
        if self.run is None or self.launch is None or not self.run.data.shares:
            return None, ""
        try:
            return Planner(self.run.module, self.run.data, self.run.profiling, self.launch).plan(), ""
        except UserError as error:
            return None, str(error)

    @property
    def asks_hub(self) -> bool:
        """Whether the run may want something of the hub; so it is where its settings cannot be used."""
        if self.run is None:
            return True
        places = [self.run.module.base_name, self.run.data.corpus.source, self.run.data.flores]
        return any(place and not Path(place).expanduser().is_dir() for place in places)
