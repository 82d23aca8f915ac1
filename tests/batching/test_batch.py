"""The images of the next batch, side by side."""

import numpy as np
import pytest

from serving.batching.batch import Stage, Staging, side_by_side


def image(value: int, height: int = 2) -> np.ndarray:
    return np.full((height, 3, 3), value, np.uint8)


def test_rows_of_one_stage_are_a_batch_without_a_copy() -> None:
    stage = Stage(4)
    rows = [stage.put(image(value)) for value in range(4)]
    batch = side_by_side(rows[1:])
    assert batch.shape == (3, 2, 3, 3)
    assert all(np.shares_memory(row, batch[place]) for place, row in enumerate(rows[1:]))
    assert batch[:, 0, 0, 0].tolist() == [1, 2, 3]


@pytest.mark.parametrize("chosen", [[0, 2], [1, 0], [1, 1], [2, 4], [4, 5]])
def test_what_does_not_lie_side_by_side_is_gathered(chosen: list[int]) -> None:
    stage, other = Stage(4), Stage(4)
    images = [stage.put(image(value)) for value in range(3)] + [other.put(image(value)) for value in (3, 4)]
    images.append(image(5))
    batch = side_by_side([images[place] for place in chosen])
    assert batch[:, 0, 0, 0].tolist() == chosen
    assert not any(np.shares_memory(batch, one) for one in images)


def test_an_image_of_which_others_are_a_part_is_no_stage() -> None:
    whole = np.arange(2 * 6 * 3, dtype=np.uint8).reshape(2, 6, 3)
    parts = [whole[:, :3], whole[:, 3:]]
    assert np.array_equal(side_by_side(parts), np.stack(parts))
    bands = np.zeros((4, 2, 3), np.uint8)
    assert np.array_equal(side_by_side([bands[0:2], bands[1:3]]), np.stack([bands[0:2], bands[1:3]]))


def test_a_stage_without_room_leaves_an_image_where_it_is() -> None:
    stage = Stage(1)
    assert stage.put(image(0)) is not None
    for too_much in (image(1), image(2, height=5)):
        assert stage.put(too_much) is too_much


def test_two_stages_take_turns_and_begin_anew() -> None:
    staging = Staging(2)
    first = staging.filling
    kept = staging.filling.put(image(1))
    staging.turn()
    assert not np.shares_memory(staging.filling.put(image(2)), kept)
    staging.turn()
    assert staging.filling is first
    assert np.shares_memory(staging.filling.put(image(3)), kept)


def test_a_stage_is_empty_before_anybody_can_see_it() -> None:
    """The thread that fills it looks without a lock, and may do so at any moment."""
    seen = []

    class Watched(Staging):
        def __setattr__(self, name: str, value: Stage) -> None:
            if name == "filling":
                seen.append(value._used)
            super().__setattr__(name, value)

    staging = Watched(4)
    for value in range(3):
        staging.filling.put(image(value))
        staging.turn()
    assert seen == [0, 0, 0, 0]
