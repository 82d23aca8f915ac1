"""What admission has to know of a lane: submit.lua tells it with each submit, queue_state.lua without one."""

from collections.abc import Sequence
from typing import Any, NamedTuple


class LaneState(NamedTuple):
    """What admission has to know of a lane."""

    clock: float  # when it was so, by Redis's clock, unix seconds
    ahead: int  # jobs that waited
    settled_total: int  # jobs ever settled
    last_empty_at: float  # when a take last left none waiting, or a pause ended, unix seconds
    is_draining: bool
    is_paused: bool

    @classmethod
    def read(cls, told: Sequence[Any]) -> "LaneState":
        """Read what submit.lua or queue_state.lua told."""
        clock, ahead, settled_total, last_empty_at, is_draining, is_paused = told
        return cls(float(clock), ahead, settled_total, float(last_empty_at), bool(is_draining), bool(is_paused))
