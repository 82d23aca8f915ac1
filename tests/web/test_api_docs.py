"""docs/api.md and /openapi.json tell each status as serving/errors.py does, and the limits as the code has them."""

import re

from conftest import ROOT

from serving import errors
from serving.images import kinds, limits
from serving.web import access, arrival, uploads
from settings import Settings
from web_parts import describe

PAGE = (ROOT / "docs" / "api.md").read_text()


def rows(table_head: str) -> list[list[str]]:
    """The cells of the page's table under a head line."""
    table = PAGE.split(f"\n{table_head}\n", 1)[1].split("\n\n", 1)[0]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[1:]]


def request_errors(root: type[errors.RequestError] = errors.RequestError) -> list[type[errors.RequestError]]:
    return [error for child in root.__subclasses__() for error in [child, *request_errors(child)]]


def test_every_request_error_has_a_status_that_is_told_but_for_a_client_that_is_gone() -> None:
    assert {error.status for error in request_errors()} == {*errors.statuses(), errors.ClientGone.status}
    for when, advice in errors.statuses().values():
        assert when.endswith(".")
        assert advice.endswith(".")


def test_the_pages_table_of_statuses_is_made_of_the_errors() -> None:
    table = [(int(status), when, advice) for status, when, advice in rows("| status | when | what to do |")]
    assert table == [(status, when, advice) for status, (when, advice) in errors.statuses().items()]


def test_the_openapi_documents_errors_are_told_in_their_words() -> None:
    for key, elsewhere in (("sesame", {403}), (None, {401})):
        told: dict[int, set[str]] = {}
        for path, operations in describe(Settings(api_key=key))["paths"].items():
            for status, answer in (item for one in operations.values() for item in one["responses"].items()):
                if int(status) >= 400 and path != "/readyz" and (path[:4], status) != ("/v2/", "404"):
                    told.setdefault(int(status), set()).add(answer["description"])
        assert told == {
            status: {f"{when} {advice}"}
            for status, (when, advice) in errors.statuses().items()
            if status not in elsewhere
        }


def test_the_page_has_the_limits_of_the_code() -> None:
    told = dict(rows("| limit | |"))
    assert told["pixels on one side"] == f"{limits.MOST_SIDE_PIXELS:,}"
    assert told["pixels of a JPEG × its scans"] == f"{limits.MOST_SCANNED_PIXELS // 10**9} billion"
    assert told["file fields and other parts of a form"] == str(uploads.MOST_PARTS)
    assert told["time for a request's head to arrive"] == f"{arrival.ARRIVAL_SECONDS:g} s"
    assert told["time for its body to arrive"] == (
        f"{arrival.ARRIVAL_SECONDS:g} s, and 1 s more for each {arrival.SLOWEST_BYTES_A_SECOND // 1000} kB that came"
    )
    assert f"after {arrival.KEEP_ALIVE_SECONDS:g} s of silence" in PAGE


def test_the_page_names_every_format_header_and_shared_path() -> None:
    assert all(name in PAGE.upper() for name in kinds.FORMATS)
    assert all(f"`{name}" in PAGE for name in access.ALWAYS)
    cors = re.sub(r"\s+", " ", PAGE[PAGE.index("(CORS)") :])
    assert all(f"`{path}`" in cors for path in access.SHARED_PATHS)
    assert f"{access.PREFLIGHT_GOOD_FOR_SECONDS} s" in cors


def test_the_page_begins_with_a_request_and_its_answer() -> None:
    beginning = PAGE[:700]
    assert beginning.index("curl -F image=@") < beginning.index('{"success":true,"predictions":[')
