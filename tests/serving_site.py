"""Servers of tiny models, and a browser before them: what the tests of the two pages share."""

import os
import re
import shutil
import threading
import time
from contextlib import contextmanager

import pytest
import torch

from rerank import Reranker
from rerank.models.backbones import load_cross_encoder
from rerank.models.calibration import Calibration
from rerank.models.policy import FirstStageWeights, ScorePolicy
from rerank.serving.limits import Limits
from rerank.serving.shelf import Named, Shelf, aliases_of
from rerank.testing import NumberScorer

pytest.importorskip("fastapi", reason="serving is the extra serve")
uvicorn = pytest.importorskip("uvicorn", reason="serving is the extra serve")
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install 'rerank[dev]'")

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
KEY = "a-key-of-enough-letters"
RUNNING = "window.ran = (window.ran || 0) + 1"
HOSTILE = f"</textarea></script><script>{RUNNING}</script><img src=x onerror='{RUNNING}'><b>bold</b> \u202e reversed"
WIDER = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
ANSWERED = re.compile(r"^Failed to load resource: the server responded with a status of \d+")
"""What the browser itself writes to its console of an answer that is a refusal."""


def tiny(folder):
    """A calibrated cross-encoder with random weights."""
    scorer, _ = load_cross_encoder(str(folder), max_length=64, precision="float32", device="cpu")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(9)
        torch.nn.init.normal_(scorer.model[-1].linear.weight, std=0.3)
    policy = ScorePolicy(scorer, budget=2000)
    policy.calibration = Calibration("affine", a=2.0, b=-0.5)
    return Reranker(policy)


def numbers():
    """A reranker by the first number in a text; not calibrated."""
    return Reranker(ScorePolicy(NumberScorer()))


def wanting(names=("first stage", "bm25")):
    """One that was trained with first-stage scores, of which the last weighs most; calibrated with and without them."""
    weights = FirstStageWeights({name: 1.0 + 10 * i for i, name in enumerate(names)})
    policy = ScorePolicy(NumberScorer(), weights)
    policy.calibration = Calibration("affine", a=0.2, b=-1.0, plain=Calibration("affine", a=1.0, b=-4.0))
    return Reranker(policy)


def a_shelf(names=("tiny", "numbers"), limits=None, aliases=()):
    """The shelf of a server, still empty."""
    models = [Named(name, f"nowhere/{i}") for i, name in enumerate(names)]
    return Shelf(models, aliases_of(aliases, models), limits or Limits())


@contextmanager
def listening(shelf, keys=()):
    """The address of a server over the models of a shelf."""
    from rerank.serving.app import app_of

    server = uvicorn.Server(uvicorn.Config(app_of(shelf, keys), port=0, log_level="error", lifespan="off", ws="none"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    until = time.monotonic() + 20
    while not server.started and time.monotonic() < until:
        time.sleep(0.01)
    assert server.started
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/"
    finally:
        shelf.close(1.0)
        server.should_exit = True
        thread.join(10)


@contextmanager
def serving(models, keys=(), limits=None, aliases=()):
    """The address of a server over rerankers by name."""
    shelf = a_shelf(tuple(models), limits, aliases)
    shelf.fill(models)
    with listening(shelf, keys) as url:
        yield url


@contextmanager
def a_browser():
    """A browser without a window; the test is skipped where there is none."""
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip(f"no browser on the path (looked for {', '.join(BROWSERS)})")
    # Chromium refuses its sandbox to root, as whom containers often run.
    root = hasattr(os, "geteuid") and os.geteuid() == 0
    with playwright.sync_playwright() as driver:
        launched = driver.chromium.launch(executable_path=path, args=["--no-sandbox"] if root else [])
        yield launched
        launched.close()


@contextmanager
def looking(browser):
    """A function that opens a page; nothing may go wrong on it (its own policy included), or be asked elsewhere."""
    contexts, wrong, elsewhere = [], [], []

    def opened(url, **settings):
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **settings})
        contexts.append(context)
        context.set_default_timeout(15_000)
        page = context.new_page()
        page.on("console", lambda message: None if ANSWERED.match(message.text) else wrong.append(message.text))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("dialog", lambda dialog: (wrong.append(dialog.message), dialog.dismiss()))
        own = (url[: url.index("/", len("http://")) + 1], "data:")
        page.on("request", lambda request: None if request.url.startswith(own) else elsewhere.append(request))
        page.goto(url)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert wrong == []
    assert [request.url for request in elsewhere] == []
