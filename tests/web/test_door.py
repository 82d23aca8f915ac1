"""The door of a web process, where the system refuses what it asks for."""

import os
import resource
import socket
from collections.abc import Iterator

import pytest
from gevent.pool import Pool

from serving.web.door import Door


class Nobody:
    """Serves nobody."""

    def handle(self, _listener: object, client: socket.socket, _address: object) -> None:
        client.close()


@pytest.fixture
def no_file_more() -> Iterator[None]:
    """This process may open no file more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest_free = os.dup(0)
    yield resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, hard))
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    os.close(lowest_free)


@pytest.fixture
def door() -> Iterator[Door]:
    """A door before which somebody waits."""
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()):
        listener.setblocking(False)
        yield Door(listener, Nobody(), Pool(2), is_shared=False)


def test_a_door_closes_also_where_nobody_can_be_accepted_any_more(door: Door, no_file_more: None) -> None:
    door.close_when_nobody_waits()  # else the process would end here, with all that it has in hand
    assert door.closed
