"""The model servers of one model, as run_service.py looks after them.

children, what the queue knows of their leases --> is_ready; a child that is given up leaves the group
"""

from collections.abc import Sequence

from serving.local.lease_keeper import LeaseKeeper
from serving.local.supervisor import Child, StopSignals


class ModelGroup:
    """The processes that serve one model.

    Args:
        model: its name; "" where the service has no other.
        children: its model servers; not started yet.
        leases: what its queue knows of them.

    Attributes:
        children: those that are not given up.
    """

    def __init__(self, model: str, children: Sequence[Child], leases: LeaseKeeper) -> None:
        self.model, self.children, self.leases = model, list(children), leases

    @property
    def is_given_up(self) -> bool:
        """Whether no model server is left that is started again when it dies."""
        return not self.children

    def is_ready(self) -> bool:
        """Whether a model server of this service, and not somebody else's, holds a lease."""
        holds = [self.leases.holds_lease(child) for child in self.children]
        return any(holds)

    def observe(self) -> None:
        """Say of each model server once that it hangs, and once that it goes on."""
        for child in self.children:
            self.leases.observe(child)

    def take_random_weights(self, signals: StopSignals) -> None:
        """Start each model server again, with random weights."""
        for child in self.children:
            child.stop(0, signals)
            child.command.append("--random-weights")
            child.start()
