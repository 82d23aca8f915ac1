"""How pictures come to the page: dropped, pasted, photographed, one of the examples; and the key it may ask for."""

from pathlib import Path

import pytest
from conftest import Answering, wait_for
from page_rig import (
    Requests,
    Visit,
    answer_in_the_services_place,
    card,
    cards,
    choose,
    drop,
    expect_answer,
    labels,
    needs_chromium,
    note,
    paste,
)
from playwright.sync_api import Browser, JSHandle, Locator, Page, expect

pytest_plugins = "page_fixtures"
pytestmark = needs_chromium

PHONE = {"viewport": {"width": 360, "height": 740}, "is_mobile": True, "has_touch": True}


def key_field(page: Page) -> Locator:
    return page.get_by_label("key of this service")


def invitation(page: Page) -> Locator:
    return page.get_by_text("Drop pictures anywhere")


# Dropped.


def test_pictures_dropped_anywhere_on_the_page_are_classified(
    page: Page, seeing: Answering, pictures: dict[str, Path]
) -> None:
    drop(page, invitation(page), pictures["red"])
    expect_answer(card(page, "red.png"), "red")
    drop(page, page.get_by_role("heading", level=1), pictures["green"], pictures["text"])
    expect_answer(card(page, "green.png"), "green")
    expect(card(page, "text.png")).to_contain_text("Send one of JPEG")
    drop(page, page.get_by_role("heading", name="Use it from code"), pictures["blue"])
    expect_answer(card(page, "blue.png"), "blue")
    expect(cards(page)).to_have_count(4)


def test_of_more_pictures_than_the_page_takes_at_once_it_takes_the_first_and_says_so(
    page: Page, seeing: Answering, pictures: dict[str, Path], tmp_path: Path
) -> None:
    answer_in_the_services_place(page, 500, '{"success": false, "error": "Not today."}')
    files = [tmp_path / f"{number}.png" for number in range(101)]
    for file in files:
        file.write_bytes(b"none")
    choose(page, *files)
    expect(note(page)).to_have_text("These are 101 files: the first 100 are taken.")
    expect(cards(page)).to_have_count(100)


def test_a_drop_that_is_no_file_says_so_and_leaves_the_cards_alone(
    page: Page, seeing: Answering, pictures: dict[str, Path]
) -> None:
    choose(page, pictures["red"])
    expect_answer(cards(page), "red")
    drop(page, invitation(page), text_plain="a word")
    expect(note(page)).to_contain_text("no file")
    choose(page, pictures["blue"])
    expect(note(page)).to_be_empty()
    drop(page, page.get_by_role("heading", name="Use it from code"), **{"text_uri-list": "http://127.0.0.1:9/a.jpg"})
    expect(note(page)).to_contain_text("no file")
    expect_answer(card(page, "red.png"), "red")


def test_a_folder_that_is_dropped_is_told_to_be_no_picture(page: Page, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    drop(page, page.get_by_role("heading", level=1), tmp_path / "folder")
    expect(cards(page)).to_contain_text("cannot be read")
    expect(cards(page)).to_contain_text("folder")


# Pasted.


def test_a_pasted_picture_is_classified_and_pasted_text_changes_no_card(
    page: Page, seeing: Answering, pictures: dict[str, Path]
) -> None:
    paste(page, image=pictures["red"].read_bytes())
    expect_answer(cards(page), "red")
    paste(page, text="a word")
    expect(note(page)).to_contain_text("no file")
    expect_answer(cards(page), "red")


# Photographed.


def wait_until_off(track: JSHandle) -> None:
    """Wait until a camera's light is out: the dialog tells the page a moment later that it has closed."""
    wait_for(lambda: track.evaluate("track => track.readyState === 'ended'"))


def test_a_computers_camera_is_shown_and_its_photo_classified(page: Page, seeing: Answering) -> None:
    page.get_by_role("button", name="Take a photo").click()
    dialog = page.get_by_role("dialog", name="Camera")
    shutter = dialog.get_by_role("button", name="Take the photo")
    expect(shutter).to_be_enabled()
    expect(shutter).to_be_focused()
    track = page.evaluate_handle("document.querySelector('video').srcObject.getTracks()[0]")
    assert track.evaluate("track => track.readyState") == "live"
    shutter.click()
    expect(dialog).to_be_hidden()
    expect(cards(page)).to_contain_text("Answered in")
    expect(card(page, "photo.jpg").get_by_role("img")).to_have_js_property("naturalWidth", 1280)
    wait_until_off(track)


def test_a_camera_that_is_closed_again_is_switched_off(page: Page) -> None:
    open_camera = page.get_by_role("button", name="Take a photo")
    for close in ("Cancel", "Escape"):
        open_camera.click()
        expect(page.get_by_role("button", name="Take the photo")).to_be_enabled()
        track = page.evaluate_handle("document.querySelector('video').srcObject.getTracks()[0]")
        if close == "Cancel":
            page.get_by_role("button", name="Cancel").click()
        else:
            page.keyboard.press("Escape")
        expect(page.get_by_role("dialog")).to_be_hidden()
        wait_until_off(track)
    expect(cards(page)).to_have_count(0)


def test_a_camera_that_comes_only_after_the_dialog_was_closed_is_switched_off(page: Page) -> None:
    page.evaluate(
        """() => {
          const real = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices);
          navigator.mediaDevices.getUserMedia = async wanted => {
            await new Promise(done => { window.letGo = done; });
            return window.stream = await real(wanted);
          };
        }"""
    )
    page.get_by_role("button", name="Take a photo").click()
    page.get_by_role("button", name="Cancel").click()
    page.evaluate("window.letGo()")
    # Playwright's own waiting evaluates text, which the page's policy forbids.
    wait_for(lambda: page.evaluate("window.stream?.getTracks().every(track => track.readyState === 'ended')"))


def test_a_page_that_may_not_use_the_camera_says_so(page: Page) -> None:
    refuse = "async () => { throw new DOMException('', 'NotAllowedError'); }"
    page.evaluate(f"() => {{ navigator.mediaDevices.getUserMedia = {refuse}; }}")
    page.get_by_role("button", name="Take a photo").click()
    expect(page.get_by_role("dialog")).to_contain_text("does not allow this page to use the camera")
    expect(page.get_by_role("button", name="Take the photo")).to_be_disabled()


def test_a_phone_takes_the_photo_with_its_own_program(
    browser: Browser, usual: str, seeing: Answering, pictures: dict[str, Path]
) -> None:
    with Visit(browser, usual, **PHONE) as page:
        # This Chromium is a computer's: the browsers of phones know the attribute.
        page.add_init_script("HTMLInputElement.prototype.capture = ''")
        page.reload()
        expect(page.locator("#camera-button")).to_be_hidden()
        field = page.get_by_label("Take a photo")
        expect(field).to_have_attribute("capture", "environment")
        choose(page, pictures["green"], field="#phone-file")
        expect_answer(cards(page), "green")


def test_the_file_field_lists_types_with_jpeg_first_so_that_phones_convert_heic(page: Page) -> None:
    accepted = (page.get_by_label("Choose pictures").get_attribute("accept") or "").split(",")
    assert accepted[0] == "image/jpeg"
    assert "image/*" not in accepted
    assert not any("hei" in kind for kind in accepted)


# Examples.


def test_each_example_is_one_click_away(page: Page, answering: Answering) -> None:
    buttons = page.get_by_role("list", name="Or try one of these").get_by_role("button")
    expect(buttons).to_have_count(6)
    for number in range(6):
        buttons.nth(number).click()
        expect(page.get_by_text("Answered in")).to_have_count(number + 1)
    expect(card(page, "lighthouse.jpg").get_by_role("img")).to_have_js_property("naturalWidth", 256)


# The key.


@pytest.mark.parametrize("server", [{"API_KEY": "sesame"}], indirect=True)
def test_where_a_key_is_asked_for_the_page_asks_for_it(
    page: Page, seeing: Answering, pictures: dict[str, Path]
) -> None:
    requests = Requests(page)
    expect(key_field(page)).to_be_hidden()
    choose(page, pictures["red"])
    expect(cards(page)).to_contain_text("key")
    key_field(page).fill("sesam")
    key_field(page).press("Enter")
    requests.wait_until_ended(2)
    expect(cards(page)).to_contain_text("key")
    expect(key_field(page)).to_be_visible()
    # A proxy's error tells nothing of the key.
    answer_in_the_services_place(page, 502, "<html><h1>502 Bad Gateway</h1></html>", times=1)
    choose(page, pictures["blue"])
    expect(card(page, "blue.png")).to_contain_text("HTTP 502")
    expect(key_field(page)).to_be_visible()
    # No header can carry this key.
    key_field(page).fill("sésame → €")
    choose(page, pictures["green"])
    expect(card(page, "green.png")).to_contain_text("no key")
    # Text that comes to the key field stays there, a picture beside it or not; "Send again" sends what was refused.
    key_field(page).fill("")
    key_field(page).focus()
    paste(page, image=pictures["blue"].read_bytes(), text="ses")
    drop(page, key_field(page), text_plain="ame")
    expect(key_field(page)).to_have_value("sesame")
    page.get_by_role("button", name="Send again").click()
    expect_answer(card(page, "red.png"), "red")
    expect_answer(card(page, "green.png"), "green")
    expect(card(page, "blue.png")).to_contain_text("HTTP 502")
    expect(key_field(page)).to_be_hidden()


@pytest.mark.parametrize("server", [{"API_KEY": "sesame"}], indirect=True)
def test_a_file_that_changed_since_it_was_chosen_is_not_told_to_be_an_unreachable_service(
    page: Page, pictures: dict[str, Path]
) -> None:
    choose(page, pictures["red"])
    expect(cards(page)).to_contain_text("key")
    pictures["red"].write_bytes(pictures["blue"].read_bytes() + b"and more")
    key_field(page).fill("sesame")
    key_field(page).press("Enter")
    expect(cards(page)).to_contain_text("cannot be read")
    expect(labels(page)).to_have_count(0)
