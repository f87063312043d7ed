"""TensorBoard's pages of a short run, in a real browser."""

import io
import re
import shutil
import socket
import subprocess
import sys
import time
from urllib.request import urlopen

import numpy as np
import pytest
from PIL import Image

from callbacks.tensorboard import (
    FALSE_NEGATIVE,
    FALSE_POSITIVE,
    TRUE_POSITIVE,
    TensorboardLoggerCallback,
    TensorboardVisualizerCallback,
)
from conftest import ROOT
from test_tensorboard import table_of
from tiny import Settings, events, train

sync_api = pytest.importorskip("playwright.sync_api", reason="no browser: make test-browser installs one")
pytestmark = pytest.mark.slow
EPOCHS = 12  # more than the ten images that TensorBoard keeps by default


@pytest.fixture(scope="module")
def logs(tmp_path_factory):
    return tmp_path_factory.mktemp("logs")


@pytest.fixture(scope="module")
def board(drawn, logs):
    """The address of a TensorBoard on loopback, started like `make tensorboard`, that shows a run of EPOCHS epochs."""
    logger = TensorboardLoggerCallback(logs / "tb_logs/2026-11-25", Settings(net="Other", learning_rate=2.5))
    classifier = train(drawn, EPOCHS, [logger, TensorboardVisualizerCallback(logs / "tb_viz/2026-11-25")])
    logger.on_score(classifier, 0.4321, table_of(0.4321))
    other = TensorboardLoggerCallback(logs / "tb_logs/2026-11-26", Settings(schedule="cosine"))
    other.on_score(classifier, 0.1234, table_of(0.1234))
    options = re.search(r"tensorboard\.main (.*)", (ROOT / "Makefile").read_text())[1].replace("./logs", str(logs))
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    command = [sys.executable, "-m", "tensorboard.main", *options.split(), "--host", "127.0.0.1", "--port", str(port)]
    server = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        address = f"http://127.0.0.1:{port}"
        for _ in range(240):
            time.sleep(0.5)
            try:
                runs = urlopen(f"{address}/data/runs").read()
            except OSError:
                continue
            if runs.count(b"2026-11-25") == 4:
                break
        yield address
    finally:
        server.kill()
        server.wait()


@pytest.fixture(scope="module")
def browser():
    found = [shutil.which(name) for name in ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")]
    with sync_api.sync_playwright() as playwright:
        try:
            opened = playwright.chromium.launch(
                executable_path=next(filter(None, found), None), args=["--no-sandbox"], timeout=60_000
            )
        except sync_api.Error as error:
            pytest.skip(f"no browser ({str(error).splitlines()[0]:.100}): make test-browser installs one")
        yield opened
        opened.close()


@pytest.fixture
def page(browser, board):
    """Opens a tab of TensorBoard by its name."""
    opened = browser.new_page(viewport={"width": 1400, "height": 2400})
    opened.set_default_timeout(60_000)

    def open_tab(name):
        opened.goto(f"{board}/#{name}")
        return opened

    yield open_tab
    opened.close()


def test_train_and_validation_share_the_charts(page):
    tab = page("timeseries")
    for tag in ("masks/dice", "masks/loss", "masks/pixel_accuracy", "masks/score", "masks/iou", "step/learning_rate"):
        card = tab.locator("card-view", has_text=tag).first
        card.scroll_into_view_if_needed()
        lines = card.locator("line-chart svg path, line-chart canvas")
        lines.first.wait_for()
        assert lines.count() > 0, tag
    runs = tab.locator("runs-data-table, runs-table").first
    runs.get_by_text("tb_logs/2026-11-25/valid").first.wait_for()
    assert runs.get_by_text("tb_logs/2026-11-25/train").count()


def test_the_slider_moves_through_all_epochs(page, logs):
    tab = page("images")
    log = events(logs / "tb_viz/2026-11-25")
    tag = next(tag for tag in log.Tags()["images"] if tag.startswith("validation/"))
    written = [image.encoded_image_string for image in log.Images(tag)]
    loader = tab.locator("tf-image-loader", has_text=tag).first
    slider, image = loader.locator("#steps"), loader.locator("img").first
    image.wait_for()
    slider.focus()
    tab.keyboard.press("Home")
    for epoch in range(EPOCHS):
        sync_api.expect(slider).to_have_attribute("aria-valuenow", str(epoch))
        tab.wait_for_timeout(300)
        assert tab.request.get(image.evaluate("img => img.src")).body() == written[epoch]
        tab.keyboard.press("ArrowRight")
    assert len(written) == EPOCHS and len(set(written)) > 6
    pixels = np.asarray(Image.open(io.BytesIO(written[0])).convert("RGB")).reshape(-1, 3)
    for color in (TRUE_POSITIVE, FALSE_NEGATIVE, FALSE_POSITIVE):  # the legend has them in any case
        assert (pixels == color).all(1).any()
    assert tab.locator("tf-image-loader", has_text="worst_of_the_epoch/1").count()


def test_hyperparameters_are_next_to_their_results(page):
    tab = page("hparams")
    headers = tab.locator("#sessionGroupsTable .table-header").filter(visible=True)
    headers.get_by_text("learning_rate").wait_for()
    names = [(header.bounding_box()["x"], header.inner_text().strip()) for header in headers.all()]
    assert [name for _, name in sorted(names)] == [
        "Trial ID", "Show Metrics", "Score", "Validation Dice", "learning_rate", "net", "schedule"
    ]  # fmt: skip
    for value in ("Other", "2.5000", "0.43210", "0.12340"):  # the last two are scores
        tab.get_by_text(value).first.wait_for()
