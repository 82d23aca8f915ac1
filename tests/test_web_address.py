"""Where servers listen: an address that cannot be had is named by the setting that is wrong."""

import re
import socket

import pytest
from conftest import Processes, free_port, is_up, output, wait_for
from prometheus_client import start_http_server

import settings
from serving.errors import StartError
from serving.local import web_address


def has_ipv6() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


@pytest.mark.parametrize("name", ["WEB_HOST", "METRICS_HOST"])
@pytest.mark.parametrize(
    ("value", "means"),
    [("[::1]", "::1"), (" 127.0.0.1 ", "127.0.0.1"), ("::", "::"), ("[fe80::1%eth0]", "fe80::1%eth0")],
)
def test_an_ipv6_address_may_be_written_as_in_a_url(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, means: str
) -> None:
    monkeypatch.setenv(name, value)
    assert getattr(settings.Settings(), name.lower()) == means


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")
def test_a_web_server_listens_on_an_ipv6_address_in_brackets(processes: Processes) -> None:
    port = free_port()
    processes.start("run_web_server.py", WEB_HOST="[::1]", WEB_PORT=str(port), WEB_WORKERS="1")
    wait_for(lambda: is_up(f"http://[::1]:{port}/healthz"))


HOSTS = [
    "nosuch.invalid",
    "192.0.2.7",
    "2001:db8::1",
    "127.0.0.1:5000",
    "http://127.0.0.1",
    "256.1.1.1",
    "a..b",
    "x" * 300,
    "größe",
]


@pytest.mark.parametrize("host", HOSTS)
def test_a_host_that_is_not_this_machines_is_blamed_and_not_the_port(host: str) -> None:
    with pytest.raises(StartError) as refused:
        web_address.check(host, free_port())
    says = str(refused.value)
    assert says.startswith(f"WEB_HOST={host}: ")
    assert says.endswith(
        "Set WEB_HOST to an address of this machine, as 127.0.0.1 or ::1, or to 0.0.0.0 for all of them."
    )
    assert not re.search("codec|Error|WEB_PORT", says)


@pytest.mark.parametrize("host", HOSTS)
def test_so_it_is_for_the_metrics_of_a_model_server(host: str) -> None:
    with pytest.raises((OSError, UnicodeError)) as refused:
        start_http_server(free_port(), addr=host)  # as ModelMetrics does
    says = web_address.what_is_wrong(refused.value, "METRICS_HOST", host, "METRICS_PORT", 9100)
    assert says.startswith(f"METRICS_HOST={host}: ")
    assert "METRICS_PORT" not in says


def test_a_port_that_another_has_is_blamed_and_not_the_host() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(
            StartError, match=f"^WEB_PORT={port} on 127.0.0.1: Address already in use. Set WEB_PORT to a free port.$"
        ):
            web_address.check("127.0.0.1", port)


def test_a_port_that_needs_rights_is_told_so() -> None:
    says = web_address.what_is_wrong(PermissionError(13, "Permission denied"), "WEB_HOST", "0.0.0.0", "WEB_PORT", 80)
    assert says == "WEB_PORT=80 on 0.0.0.0: Permission denied. Set WEB_PORT to a port above 1023."


def test_a_machine_without_ipv6_is_told_that_it_has_none() -> None:
    error = OSError(97, "Address family not supported by protocol")
    says = web_address.what_is_wrong(error, "WEB_HOST", "::1", "WEB_PORT", 80)
    assert says.startswith("WEB_HOST=::1: Address family not supported")


def test_the_servers_say_it_themselves_and_a_model_server_goes_on(
    processes: Processes, light_model: dict[str, str]
) -> None:
    web = processes.start("run_web_server.py", WEB_HOST="nosuch.invalid", WEB_PORT=str(free_port()))
    assert web.wait(timeout=60) == 2
    assert "WEB_HOST=nosuch.invalid: " in output(web)
    assert "Traceback" not in output(web)
    port = str(free_port())
    model = processes.start("run_model_server.py", METRICS_HOST="a..b", METRICS_PORT=port, **light_model)
    wait_for(lambda: "joined the queue" in output(model))
    assert "no /metrics: METRICS_HOST=a..b: this is no name of a host. Set METRICS_HOST to" in output(model)
