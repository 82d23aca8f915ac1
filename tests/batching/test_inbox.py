"""The jobs that wait for the model: one batch, side by side in memory, closed when the model asks."""

import threading
from dataclasses import dataclass
from typing import cast

import numpy as np
import pytest

from serving.batching.batch import Batch, Item
from serving.batching.inbox import Inbox
from serving.jobs.model_queue import Member

SHAPE = (2, 3, 3)


@dataclass
class Name:
    """What the inbox asks of a member of the queue: how many jobs are in hand, and whether the lease is lost."""

    in_hand: int = 1
    is_lost: bool = False


def image(value: int) -> np.ndarray:
    return np.full(SHAPE, value, np.uint8)


def jobs(*values: int | None) -> list[tuple[Item, np.ndarray | None]]:
    """Items, each with an image of that value; None: one that ends without the model."""
    return [(Item(str(value).encode()), None if value is None else image(value)) for value in values]


def opened(batch_size: int, member: Name | None = None) -> Inbox:
    inbox = Inbox(batch_size, SHAPE)
    inbox.open(cast(Member, member or Name()))
    return inbox


def take(inbox: Inbox) -> Batch:
    batch = inbox.take()
    assert batch is not None
    return batch


def values(batch: Batch) -> list[int]:
    return batch.pixels([item for item in batch.items if item.row is not None])[:, 0, 0, 0].tolist()


def test_a_batch_is_all_that_came_since_the_last_one_without_a_copy() -> None:
    inbox = opened(4)
    inbox.put(jobs(1))
    inbox.put(jobs(2, 3))
    batch = take(inbox)
    assert values(batch) == [1, 2, 3]
    assert np.shares_memory(batch.pixels(batch.items), batch.rows)


@pytest.mark.parametrize("chosen", [[0, 2], [0, 1, 3]])
def test_items_that_do_not_follow_each_other_are_gathered(chosen: list[int]) -> None:
    inbox = opened(4)
    inbox.put(jobs(0, 1, 2, 3))
    batch = take(inbox)
    pixels = batch.pixels([batch.items[place] for place in chosen])
    assert pixels[:, 0, 0, 0].tolist() == chosen
    assert not np.shares_memory(pixels, batch.rows)


def test_items_without_pixels_take_no_row_and_go_along_in_their_order() -> None:
    inbox = opened(2)
    inbox.put(jobs(None, 1, None, 2, None))
    batch = take(inbox)
    assert [item.text for item in batch.items] == [b"None", b"1", b"None", b"2", b"None"]
    assert values(batch) == [1, 2]


def test_the_rows_of_a_batch_are_not_written_while_the_next_one_fills() -> None:
    inbox = opened(2)
    for value in range(0, 20, 2):
        inbox.put(jobs(value, value + 1))
        batch = take(inbox)
        inbox.put(jobs(98, 99))
        assert values(batch) == [value, value + 1]
        assert values(take(inbox)) == [98, 99]


def test_there_is_room_for_one_batch_and_for_no_more() -> None:
    inbox = opened(3)
    assert inbox.wait_for_room() == 3
    inbox.put(jobs(1, None, 2))
    assert inbox.wait_for_room() == 1
    inbox.put(jobs(3))
    assert inbox.wait_for_room() == 0
    take(inbox)
    assert inbox.wait_for_room() == 3


def test_after_the_batch_size_fell_what_is_left_over_stays_where_it_is() -> None:
    inbox = opened(4)
    inbox.put(jobs(0, 1, 2, 3))
    inbox.batch_size = 2
    first = take(inbox)
    assert inbox.wait_for_room() == 0
    second = take(inbox)
    assert (values(first), values(second)) == ([0, 1], [2, 3])
    inbox.put(jobs(4, 5))
    assert (values(second), values(take(inbox))) == ([2, 3], [4, 5])


def test_a_new_member_finds_room_and_leaves_the_models_rows_alone() -> None:
    inbox = opened(4)
    inbox.put(jobs(0, 1, 2, 3))
    inbox.batch_size = 2
    with_model = take(inbox)  # 2 and 3 are left beside it
    inbox.close()
    assert inbox.take() is None
    other = cast(Member, Name())
    inbox.open(other)
    assert inbox.wait_for_room() == 2
    inbox.put(jobs(7, 8))
    assert values(with_model) == [0, 1]
    batch = take(inbox)
    assert batch.member is other
    assert values(batch) == [7, 8]


def test_halves_keep_order_and_rows() -> None:
    inbox = opened(4)
    inbox.put(jobs(0, None, 1, 2))
    assert [values(half) for half in take(inbox).halves()] == [[0], [1, 2]]


@pytest.mark.parametrize(
    ("member", "wanted"),
    [(Name(in_hand=0), True), (Name(is_lost=True), True), (Name(in_hand=1), False)],
    ids=["hands are empty", "the lease is lost", "a job is in hand"],
)
def test_the_fetcher_looks_early_only_where_there_is_something_to_do(member: Name, wanted: bool) -> None:
    inbox = opened(4, member)
    waiting = threading.Thread(target=inbox.wait_until_wanted, args=(5.0,), daemon=True)
    waiting.start()
    waiting.join(0.3)
    assert waiting.is_alive() is not wanted
    member.in_hand = 0
    inbox.answered()
    waiting.join(2)
    assert not waiting.is_alive()


def test_a_model_that_starves_after_a_batch_of_several_wakes_the_fetcher() -> None:
    inbox = opened(4)
    inbox.put(jobs(1, 2))
    take(inbox)
    waiting = threading.Thread(target=inbox.wait_until_wanted, args=(5.0,), daemon=True)
    waiting.start()
    waiting.join(0.2)
    assert waiting.is_alive()
    assert inbox.take() is None
    waiting.join(2)
    assert not waiting.is_alive()
