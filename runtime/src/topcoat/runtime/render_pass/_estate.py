"""What is left of a pass that nobody closed, and who sees to it."""

from __future__ import annotations

import warnings

from topcoat.runtime.render_pass._engines import Rosters, close_all
from topcoat.runtime.render_pass._threads import start
from topcoat.runtime.render_pass._worker import Worker


class Estate:
    """The thread and the engines of a pass. It does not know the pass, which may so be forgotten.

    Args:
        name: of the bundle, for the warning.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self.worker: Worker | None = None
        self.rosters: list[Rosters] = []

    def keep(self, rosters: Rosters) -> None:
        """Note engines that the pass has."""
        self.rosters.append(rosters)

    def forget(self, rosters: Rosters) -> None:
        """Note that others free them."""
        self.rosters = [one for one in self.rosters if one is not rosters]

    def settle(self) -> None:
        """Stop the thread and free the engines of a pass that was dropped without ``close``."""
        worker, self.worker = self.worker, None
        rosters, self.rosters = self.rosters, []
        if worker is not None:
            worker.ask_to_stop()
        if worker is not None or rosters:
            start(lambda: _free(worker, rosters), "closing")
            warnings.warn(
                f"a render pass of {self._name} was dropped without close()",
                ResourceWarning,
                stacklevel=2,
            )


def _free(worker: Worker | None, rosters: list[Rosters]) -> None:
    if worker is not None:
        worker.ended.wait()  # it may be inside an engine
    for one in rosters:
        close_all(one)
