"""The page of `nprcnn inspect` in a headless Chromium: it loads without errors, clicks and keys change what is shown."""

import numpy as np
import pytest
from browser import Browser, chromium_path

import nprcnn
from nprcnn.data.shapes import Shapes
from nprcnn.inspect import write_page

pytestmark = pytest.mark.skipif(chromium_path() is None, reason="no Chromium found: apt-get install chromium")


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with Browser(chromium_path(), tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    image, target = Shapes.held_out(21)[20]
    write_page(folder / "scene.html", nprcnn.maskrcnn_tiny(weights="shapes"), image, target, title="scene", about="tiny")
    write_page(folder / "nothing.html", nprcnn.maskrcnn_tiny(weights="shapes", box_score_thresh=0.999999), np.full((64, 64, 3), 128, np.uint8))
    write_page(folder / "boxes.html", nprcnn.maskrcnn_tiny(masks=False, box_score_thresh=0.01, rng=np.random.default_rng(1)), image, score=0)
    return folder


@pytest.fixture
def page(browser, pages):
    """The scene's page, opened; at the end there must be no complaint, and no request but for the file itself."""
    browser.problems.clear()
    browser.requests.clear()
    browser.open(pages / "scene.html")
    yield browser
    assert browser.problems == []
    assert {url.split("#")[0] for url in browser.requests} <= {(pages / "scene.html").as_uri()}


ARTICLE = "document.querySelector('#stage').textContent"
STAGE = "document.querySelector('#stages [aria-current=true]').textContent"
CHOSEN = "document.querySelector('#list [aria-current=true]').textContent"
COUNT = "document.querySelectorAll('#list button').length"


def ink(browser, selector):
    """The pixels of a canvas, as text."""
    return browser.evaluate(f"document.querySelector('{selector}').toDataURL()")


def test_it_opens(page):
    assert page.evaluate("document.title") == "scene - nprcnn inspect"
    assert page.evaluate(STAGE).startswith("1 ") and page.evaluate(COUNT) == page.evaluate("visible().length") > 1
    assert len(set(page.evaluate("Array.from(document.querySelector('#scene canvas').getContext('2d').getImageData(0, 0, 300, 300).data)"))) > 50


def test_a_click_into_the_image_chooses_a_detection(page):
    before = page.evaluate(CHOSEN)
    other = page.evaluate("visible().find(i => i !== state.detection)")
    box, size = page.evaluate(f"data.detections[{other}].box"), page.evaluate("[data.input.width, data.input.height]")
    picture = ink(page, "#scene canvas")
    for _ in range(4):      # where boxes lie on top of each other, each click takes the next one
        page.click("#scene canvas", (box[0] + box[2]) / 2 / size[0], (box[1] + box[3]) / 2 / size[1])
        if page.evaluate("state.detection") == other:
            break
    assert page.evaluate("state.detection") == other and page.evaluate(CHOSEN) != before
    assert ink(page, "#scene canvas") != picture


def test_a_click_into_the_list_chooses_a_detection(page):
    text = page.evaluate(ARTICLE)
    page.click("#stages button:nth-child(3)")
    first = page.evaluate(ARTICLE)
    assert first != text and "anchor" in first
    page.click("#list li:nth-child(2) button")
    assert page.evaluate("state.detection") == page.evaluate("visible()[1]") and page.evaluate(ARTICLE) != first


def test_keys_step_through_stages_and_detections(page):
    stages, shown = page.evaluate("stages.length"), []
    for _ in range(stages):
        shown.append((page.evaluate(STAGE), page.evaluate(ARTICLE)))
        page.key("ArrowRight")
    assert len(set(shown)) == stages == 10
    assert page.evaluate(STAGE) == shown[-1][0]                       # the last one stays
    page.key("ArrowLeft")
    assert page.evaluate(STAGE) == shown[-2][0]
    before = page.evaluate("state.detection")
    page.key("ArrowDown")
    assert page.evaluate("state.detection") != before and page.evaluate(STAGE) == shown[-2][0]
    page.key("ArrowUp")
    assert page.evaluate("state.detection") == before


def test_keys_on_a_slider_move_the_slider(page):
    page.evaluate("document.querySelector('#score').focus()")
    page.key("ArrowRight")
    assert page.evaluate("state.score") == pytest.approx(0.51) and page.evaluate("state.stage") == 0


def test_the_score_slider_hides_detections(page):
    def move(value):
        page.evaluate(f"(() => {{ const s = document.querySelector('#score'); s.value = {value}; s.dispatchEvent(new Event('input')); }})()")
    few, picture = page.evaluate(COUNT), ink(page, "#scene canvas")
    move(0.05)
    assert page.evaluate(COUNT) == page.evaluate("data.detections.length") > few and ink(page, "#scene canvas") != picture
    move(1)
    assert page.evaluate(COUNT) <= few and "NaN" not in page.evaluate(ARTICLE)


def test_the_mask_slider_changes_masks(page):
    page.open(page.evaluate("location.pathname"), "#forward/0/paste")
    before, left, pixels = ink(page, "#stage figure:nth-child(2) canvas"), ink(page, "#scene canvas"), page.evaluate(ARTICLE)
    page.evaluate("(() => { const s = document.querySelector('#mask'); s.value = 0.9; s.dispatchEvent(new Event('input')); })()")
    assert ink(page, "#stage figure:nth-child(2) canvas") != before and ink(page, "#scene canvas") != left
    assert page.evaluate(ARTICLE) != pixels and "at least 0.90" in page.evaluate(ARTICLE)


def test_pointing_shows_values(page):
    page.open(page.evaluate("location.pathname"), "#forward/0/anchor")
    page.hover("#stage figure canvas", 0.51, 0.51)
    text = page.evaluate("document.querySelector('#stage .readout').textContent")
    rows = page.evaluate("data.detections[0].anchor.rows")
    assert text.startswith(f"row {int(0.51 * rows)}, column ")
    # what is read is what was stored
    wanted = page.evaluate(f"unpack(data.objectness[data.detections[0].anchor.key]).at({int(0.51 * rows)}, {int(0.51 * rows)})")
    assert float(text.split(": ")[1]) == pytest.approx(wanted, rel=1e-2, abs=1e-3)


def test_pointing_at_a_cell_of_the_crop_shows_where_it_is_read(page):
    page.open(page.evaluate("location.pathname"), "#forward/0/roi")
    before = ink(page, "#stage figure:nth-child(2) canvas")
    page.hover("#stage figure:nth-child(3) canvas", 0.5, 0.5)
    during = ink(page, "#stage figure:nth-child(2) canvas")
    page.hover("#stage figure:nth-child(3) canvas", 0.1, 0.1)
    assert len({before, during, ink(page, "#stage figure:nth-child(2) canvas")}) == 3


def test_channels_and_stages_of_features(page):
    page.open(page.evaluate("location.pathname"), "#forward/0/features")
    first = ink(page, "#stage figure canvas")
    page.click("#stage .thumbs button:nth-child(3)")
    second = ink(page, "#stage figure canvas")
    page.click("#stage .choice button:nth-of-type(1)")
    assert len({first, second, ink(page, "#stage figure canvas")}) == 3 and "backbone.stem" in page.evaluate(ARTICLE)


def test_the_gradients(page):
    page.click("#tab-backward")
    assert page.evaluate("document.querySelector('#tab-backward').getAttribute('aria-selected')") == "true"
    assert "loss_mask" in page.evaluate("document.querySelector('#list').textContent")
    stages, shown = page.evaluate("data.backward.stages.length"), set()
    for _ in range(stages):
        shown.add(page.evaluate("document.querySelector('#stage h2').textContent + " + ARTICLE))
        page.key("ArrowDown")
    assert len(shown) == stages > 20
    page.evaluate("Array.from(document.querySelectorAll('.norms button')).find(b => b.textContent.startsWith('fpn.p2')).click()")
    assert page.evaluate("document.querySelector('#stage h2').textContent") == "fpn.p2"
    page.click("#tab-forward")
    assert page.evaluate("document.querySelectorAll('#stages button').length") == 10


@pytest.mark.parametrize("width", [1280, 800, 420])
def test_nothing_is_wider_than_the_window(page, width):
    page.resize(width, 900)
    for place in ("forward/0/features", "forward/1/roi", "forward/0/box", "forward/0/paste", "backward/roi_heads.class_logits"):
        page.open(page.evaluate("location.pathname"), "#" + place)
        assert page.evaluate("document.documentElement.scrollWidth") <= width, place
    page.resize(1280, 900)


def test_everything_has_a_name_for_those_who_do_not_see_it(page):
    for place in ("forward/0/features", "forward/0/roi", "backward/roi_heads.mask_logits"):
        page.open(page.evaluate("location.pathname"), "#" + place)
        nameless = "e => !(e.getAttribute('aria-label') || e.textContent.trim() || (e.labels && e.labels.length))"
        assert page.evaluate(f"Array.from(document.querySelectorAll('canvas[role=img], button, input')).filter({nameless}).length") == 0
        assert page.evaluate("document.querySelector('#announce').textContent").strip()


@pytest.mark.parametrize("name, stages", [("nothing", 10), ("boxes", 7)])
def test_pages_without_detections_and_without_masks(browser, pages, name, stages):
    browser.problems.clear()
    browser.open(pages / f"{name}.html")
    for _ in range(stages):
        browser.key("ArrowRight")
        browser.key("ArrowDown")
    assert browser.evaluate("document.querySelectorAll('#stages button').length") == stages
    assert browser.evaluate("document.querySelector('#tab-backward').disabled") is True
    assert browser.problems == []
