"""The two pages of the server in a real browser: they show what the models say, and ask nothing elsewhere."""

import ast
import json
import math
import os
import re
import shutil
import subprocess
import threading
import time
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from test_browser import COLOURS

import rerank.serving
from rerank import Reranker
from rerank.models.backbones import load_cross_encoder
from rerank.models.calibration import Calibration
from rerank.models.policy import ScorePolicy
from rerank.serving.limits import Limits
from rerank.serving.shelf import Shelf, aliases_of, named
from rerank.testing import NumberScorer

pytest.importorskip("fastapi", reason="serving is the extra serve")
uvicorn = pytest.importorskip("uvicorn", reason="serving is the extra serve")
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install 'rerank[dev]'")

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
EXAMPLES = ("Sourdough", "Code", "Languages")
PAGES = ("page.html", "docs.html")
KEY = "a-key-of-enough-letters"
RUNNING = "window.ran = (window.ran || 0) + 1"
HOSTILE = f"</textarea></script><script>{RUNNING}</script><img src=x onerror='{RUNNING}'><b>bold</b> \u202e reversed"
ODD = [
    "it's a 'quoted' \\ \"text\"",
    "`echo no` $HOME $(echo no)",
    "two\nlines\tand \u2028 a separator",
    "🚲 😀 日本",
    HOSTILE,
]
NUMBERS = ["number 3", "number 99", "number 1", "number 40"]
WIDER = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
ANSWERED = re.compile(r"^Failed to load resource: the server responded with a status of \d+")
"""What the browser itself writes to its console of an answer that is a refusal."""


# ------------------------------------------------------------------------------------------------- servers and browser
def tiny(folder):
    """A calibrated cross-encoder with random weights."""
    scorer, _ = load_cross_encoder(str(folder), max_length=64, precision="float32", device="cpu")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(9)
        torch.nn.init.normal_(scorer.model[-1].linear.weight, std=0.3)
    policy = ScorePolicy(scorer, budget=2000)
    policy.calibration = Calibration("affine", a=2.0, b=-0.5)
    return Reranker(policy)


def a_shelf(limits=None):
    models = [named("tiny=nowhere"), named("numbers=elsewhere")]
    return Shelf(models, aliases_of(["another=tiny"], models), limits or Limits())


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


@pytest.fixture(scope="module")
def models(tiny_bert):
    return {"tiny": tiny(tiny_bert), "numbers": Reranker(ScorePolicy(NumberScorer()))}


@pytest.fixture(scope="module")
def site(models):
    shelf = a_shelf()
    shelf.fill(models)
    with listening(shelf) as url:
        yield url


@pytest.fixture(scope="module")
def keyed(models):
    shelf = a_shelf()
    shelf.fill(models)
    with listening(shelf, [KEY]) as url:
        yield url


@pytest.fixture(scope="module")
def browser():
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip(f"no browser on the path (looked for {', '.join(BROWSERS)})")
    # Chromium refuses its sandbox to root, as whom containers often run.
    root = hasattr(os, "geteuid") and os.geteuid() == 0
    with playwright.sync_playwright() as driver:
        launched = driver.chromium.launch(executable_path=path, args=["--no-sandbox"] if root else [])
        yield launched
        launched.close()


@pytest.fixture
def look(browser):
    """Opens a page; afterwards nothing may have gone wrong on it (its own policy included), or been asked elsewhere."""
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


@pytest.fixture
def at(look, site):
    """The page at /, open and with its models known."""

    def opened(**settings):
        page = look(site, **settings)
        page.locator("#server", has_text="2 models").wait_for()
        return page

    return opened


# --------------------------------------------------------------------------------------------------- hands on the page
def paste(page, documents, query="which is large"):
    page.locator("#query").fill(query)
    page.locator("#documents").fill(documents if isinstance(documents, str) else json.dumps(documents))


def rank(page, model=None):
    if model is not None:
        page.locator("#model").select_option(model)
    page.locator("#rank").click()
    page.locator("#status", has_text=" ranked, ").wait_for()


def settle(page):
    """Let every row arrive at its place."""
    page.evaluate("Promise.allSettled(document.getAnimations().map(running => running.finished))")


def copied(page, language):
    """What there is to copy; it is written when the fold opens."""
    page.locator("#copies summary").click()
    page.locator("#python", has_text="import cohere").wait_for()
    return page.locator(f"#{language}").text_content()


def choose(page, label):
    page.locator("#controls label", has_text=label).click()


def order(page, column=0):
    rows = page.locator(f"#column-{column} .row")
    return [int(i) for i in rows.evaluate_all("rows => rows.map(row => row.dataset.i)")]


def scores(page, column=0):
    """Place in the documents -> the number that its row stands for."""
    titles = page.locator(f"#column-{column} .score").evaluate_all("all => all.map(one => Number(one.title))")
    return dict(zip(order(page, column), titles, strict=True))


def check(page, reranker, query, documents, column=0):
    """The column shows the documents in the order, and with the numbers, of the reranker itself."""
    calibrated = reranker.calibrated()
    wanted = {hit.index: hit for hit in reranker.rank(query, documents, probabilities=calibrated)}
    shown = order(page, column)
    assert sorted(shown) == list(range(len(documents)))
    logits = [wanted[i].score for i in shown]
    assert all(above >= below - 1e-4 for above, below in pairwise(logits)), logits
    assert scores(page, column) == pytest.approx({i: wanted[i].relevance for i in shown}, abs=1e-4)
    choose(page, "logits")
    assert scores(page, column) == pytest.approx({i: wanted[i].score for i in shown}, abs=1e-4)
    choose(page, "0 to 1")


# -------------------------------------------------------------------------------------------------------------- oracle
@pytest.mark.parametrize("example", EXAMPLES)
def test_an_example_is_ranked_in_one_click_as_the_reranker_ranks_it(at, models, example):
    page = at()
    page.get_by_role("button", name=example, exact=True).click()
    page.locator("#status", has_text="8 documents ranked").wait_for()
    choose(page, "as given")
    assert order(page) == list(range(8))
    documents = page.locator(".row .text").evaluate_all("all => all.map(one => one.textContent)")
    choose(page, "as ranked")
    check(page, models["tiny"], page.locator("#query").input_value(), documents)
    settle(page)
    tops = [box["y"] for box in (row.bounding_box() for row in page.locator(".row").all())]
    assert tops == sorted(tops), "what is first in the list stands highest"


@pytest.mark.parametrize("model", ["tiny", "numbers"])
def test_odd_documents_are_ranked_as_the_reranker_ranks_them(at, models, model):
    page = at()
    documents = [*ODD, "", *NUMBERS]
    paste(page, documents)
    rank(page, model)
    check(page, models[model], "which is large", documents)
    assert page.locator(".text.none").inner_text() == "an empty document"


def test_each_place_is_told_with_the_one_before(at):
    page = at()
    paste(page, NUMBERS)
    rank(page, "numbers")
    assert order(page) == [1, 3, 0, 2]
    assert page.locator(".place").all_inner_texts() == ["1", "2", "3", "4"]
    told = page.locator(".moved").all_inner_texts()
    assert told == ["↑ 1 from 2", "↑ 2 from 4", "↓ 2 from 1", "↓ 1 from 3"]
    assert page.locator("#status").inner_text() == "4 documents ranked, 4 in another place; the best was number 2."
    choose(page, "as given")
    assert page.locator(".moved").all_inner_texts() == ["↓ 2 to 3", "↑ 1 to 1", "↓ 1 to 4", "↑ 2 to 2"]


def test_two_models_stand_side_by_side_and_on_a_phone_behind_tabs(at, models):
    documents = [f"{text} of {i}" for i, text in enumerate([*NUMBERS, "no such", "a tea"])]
    page = at()
    paste(page, documents)
    page.locator("#other").select_option("numbers")
    rank(page)
    assert page.locator("h2").all_inner_texts() == ["tiny", "numbers"]
    same = sum(one == other for one, other in zip(order(page), order(page, 1), strict=True))
    assert f"ranked, by two models: {same} ha" in page.locator("#status").inner_text()
    for column, name in enumerate(models):
        check(page, models[name], "which is large", documents, column)
    settle(page)
    page.locator("#links path").first.wait_for(state="attached")
    assert page.locator("#links path").count() == 5
    page.set_viewport_size({"width": 390, "height": 844})
    assert [page.locator(f"#column-{i}").is_visible() for i in (0, 1)] == [True, False]
    page.locator("#tab-0").press("ArrowRight")
    assert [page.locator(f"#column-{i}").is_visible() for i in (0, 1)] == [False, True]
    page.locator("#other").select_option("")
    page.locator("#column-1").wait_for(state="detached")
    assert page.locator("#tabs").is_hidden()


@pytest.mark.parametrize(
    ("pasted", "said", "documents"),
    [
        ("one\n\ttwo\n  \n", "2 documents, one a line", ["one", "\ttwo"]),
        ("a\nb\n \nc\n\n\nd", "3 documents, a blank line between", ["a\nb", "c", "d"]),
        ('["one\\ntwo", {"text": "three"}, ""]', "3 documents, a JSON list", ["one\ntwo", "three", ""]),
        ('{"text": "one"}\n\n{"title": "T", "text": "two"}', "2 documents, JSONL, with titles", ["one", "T two"]),
        ('"one"\n"two"', "2 documents, JSONL", ["one", "two"]),
        ('{"query": "q", "documents": ["one"]}', "1 document, a JSON list", ["one"]),
        ("[1] a footnote\n“quoted”", "2 documents, one a line", ["[1] a footnote", "“quoted”"]),
        (" \n\t", "No documents", []),
    ],
)
def test_what_was_pasted_is_read_and_told(at, pasted, said, documents):
    page = at()
    page.locator("#documents").fill(pasted)
    page.locator("#understood", has_text=re.compile(f"^{re.escape(said)}$")).wait_for()
    assert page.locator("#remark").is_hidden()
    assert page.evaluate("texts") == documents


@pytest.mark.parametrize(
    ("pasted", "problem"),
    [
        ('{"text": "one"}\n{"text": two}', "line 2 is no JSON"),
        ('["one", {"body": "two"}]', 'document 2 is no text and has no "text"'),
    ],
)
def test_broken_json_is_told_and_never_ranked_as_json(at, pasted, problem):
    page = at()
    paste(page, pasted)
    page.locator("#remark", has_text=f"read as plain text: {problem}").wait_for()
    page.locator("#how").select_option("json")
    page.locator("#remark", has_text=re.compile(f"^{re.escape(problem)}$")).wait_for()
    page.locator("#rank").click()
    page.locator("#problem", has_text=problem).wait_for()
    page.locator("#how").select_option("lines")
    assert page.locator("#remark").is_hidden() and page.locator(".row").count() == len(pasted.splitlines())


# ---------------------------------------------------------------------------------------------------------- movement
def test_every_row_sets_out_from_where_it_was(at):
    page = at(viewport={"width": 1280, "height": 1200})
    paste(page, [*NUMBERS, "number 41\n" * 6])
    rank(page, "numbers")
    settle(page)
    place = "row => [row.dataset.i, row.getBoundingClientRect().top]"
    places = f"Object.fromEntries([...document.querySelectorAll('.row')].map({place}))"
    before = page.evaluate(places)
    # Changed, halted at the first moment and measured in one turn of the browser, which cannot paint in between.
    halted = (
        "(() => { document.querySelector('input[value=given]').click();"
        "for (const one of document.getAnimations()) { one.pause(); one.currentTime = 0; }"
        f"return {places}; }})()"
    )
    assert page.evaluate(halted) == pytest.approx(before, abs=0.6)
    page.evaluate("document.getAnimations().forEach(running => running.finish())")
    after = page.evaluate(places)
    assert sorted(after, key=after.get) == ["0", "1", "2", "3", "4"] != sorted(before, key=before.get)


def test_nothing_moves_for_who_wants_no_motion(at):
    page = at(reduced_motion="reduce")
    paste(page, NUMBERS)
    rank(page, "numbers")
    moving = "document.querySelector('input[value=given]').click(), document.getAnimations().length"
    assert page.evaluate(moving) == 0 and order(page) == [0, 1, 2, 3]


# ---------------------------------------------------------------------------------------------------------- threshold
def test_a_threshold_greys_out_what_falls_below_it(at, models):
    page = at()
    paste(page, [*NUMBERS, "a tea"])
    rank(page, "tiny")
    hits = models["tiny"].rank("which is large", [*NUMBERS, "a tea"], probabilities=True)
    floor = round((hits[1].probability + hits[2].probability) / 2, 6)
    page.get_by_label("Threshold as a number").fill(str(floor))
    assert "At or above the threshold: 2 of 5." in page.locator("#meaning").inner_text()
    below = page.locator(".row.below").evaluate_all("rows => rows.map(row => Number(row.dataset.i))")
    assert below == [hit.index for hit in hits[2:]] == order(page)[2:]
    slider = page.get_by_label("Threshold", exact=True)
    slider.press("Home")
    assert page.locator(".row.below").count() == 0
    slider.press("End")
    assert page.locator(".row.below").count() == sum(hit.probability < 1 for hit in hits)


def test_without_calibration_there_is_no_threshold_and_the_page_says_why(at):
    page = at()
    paste(page, NUMBERS)
    rank(page, "numbers")
    assert page.locator("#threshold").is_disabled() and page.locator("#exact").is_disabled()
    told = page.locator("#meaning").inner_text()
    assert "logistic of the logit, no probabilities" in told and "not calibrated" in told


# ------------------------------------------------------------------------------------------------- refusals and the key
def test_a_refusal_is_told_in_the_servers_words(at):
    page = at()
    paste(page, NUMBERS, query=" ")
    with page.expect_response("**/rerank") as waiting:
        page.locator("#rank").click()
    refusal = waiting.value.json()
    page.locator("#problem", has_text=refusal["message"]).wait_for()
    playwright.expect(page.locator("#problem")).to_be_in_viewport()
    assert f"422 · request {refusal['request_id']}" in page.locator("#problem").inner_text()
    paste(page, NUMBERS)
    rank(page)
    assert page.locator("#problem").is_hidden()


def test_too_many_documents_are_told_before_and_after_they_are_sent(look, models):
    shelf = a_shelf(Limits(documents=3))
    shelf.fill(models)
    with listening(shelf) as url:
        page = look(url)
        page.locator("#server", has_text="2 models").wait_for()
        paste(page, NUMBERS)
        page.locator("#remark", has_text="this server takes 3 documents in a request").wait_for()
        page.locator("#rank").click()
        page.locator("#problem", has_text="4 documents; at most 3").wait_for()


def test_a_key_is_asked_for_and_kept_nowhere(look, keyed):
    page = look(keyed)
    page.locator("#problem", has_text="key is missing").wait_for()
    field = page.get_by_label("Key of this server")
    assert field.get_attribute("type") == "password"
    paste(page, NUMBERS)
    for wrong in ("another-key-of-letters", "schlüssel-№"):
        field.fill(wrong)
        page.locator("#rank").click()
        page.locator("#problem", has_text="key" if wrong.isascii() else "cannot carry").wait_for()
    field.fill(KEY)
    rank(page, None)
    snippets = copied(page, "curl") + page.locator("#python").text_content()
    kept = "[location.href, document.cookie, ...Object.values(localStorage), ...Object.values(sessionStorage)].join()"
    assert KEY not in page.evaluate(kept)
    assert KEY not in snippets and snippets.count("RERANK_API_KEY") == 2
    page.reload()
    page.locator("#problem", has_text="key is missing").wait_for()
    assert field.input_value() == ""


def test_a_server_that_is_loading_is_asked_again(look, models):
    shelf = a_shelf()
    with listening(shelf) as url:
        page = look(url)
        page.locator("#problem", has_text="being loaded").wait_for()
        shelf.fill(models)
        page.locator("#server", has_text="2 models").wait_for()
        assert page.locator("#problem").is_hidden()
        assert page.locator("#model option").all_inner_texts() == ["tiny", "numbers"], "another name is no other model"


def test_a_server_that_has_gone_is_told_and_a_request_can_be_stopped(at):
    page = at()
    paste(page, NUMBERS)
    page.route("**/rerank", lambda route: None)
    page.locator("#rank").click()
    page.locator("#columns.waiting").wait_for()
    page.keyboard.press("Escape")
    page.locator("#status", has_text="Stopped.").wait_for()
    page.unroute_all(behavior="ignoreErrors")
    page.evaluate("() => { fetch = () => Promise.reject(new TypeError('Failed to fetch')); }")
    page.locator("#rank").click()
    page.locator("#problem", has_text="the server does not answer").wait_for()


# -------------------------------------------------------------------------------------------------------------- copies
def test_the_copied_curl_asks_exactly_this(at, tmp_path):
    curl, shell = shutil.which("curl"), shutil.which("bash")
    if curl is None or shell is None:
        pytest.skip("no curl or no bash on the path")
    page = at()
    paste(page, [*ODD, *NUMBERS], query="it's `large` $HOME")
    rank(page, "numbers")
    choose(page, "logits")
    script = tmp_path / "asked.sh"
    script.write_text(copied(page, "curl"), encoding="utf8")
    done = subprocess.run([shell, str(script)], capture_output=True, timeout=30, check=True)
    rows = json.loads(done.stdout)["results"]
    assert [row["index"] for row in rows] == order(page)
    assert {row["index"]: row["relevance_score"] for row in rows} == pytest.approx(scores(page), abs=1e-6)


def test_the_copied_python_asks_exactly_this(at, site):
    page = at()
    query = 'it\'s "large" \\n'
    paste(page, [*ODD, *NUMBERS], query=query)
    rank(page, "tiny")
    page.get_by_label("Threshold as a number").fill("0.25")
    tree = ast.parse(copied(page, "python"))
    calls = {
        node.func.attr: node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
    }
    given = {word.arg: ast.literal_eval(word.value) for name in ("ClientV2", "rerank") for word in calls[name].keywords}
    assert given == {
        "api_key": "none",
        "base_url": site.rstrip("/"),
        "model": "tiny",
        "query": query,
        "documents": [*ODD, *NUMBERS],
        "request_options": {"additional_body_parameters": {"min_probability": 0.25}},
    }


# --------------------------------------------------------------------------------------------------------------- edges
def test_hostile_documents_and_names_stay_texts(look, models):
    listed = [named(f"{HOSTILE}=nowhere"), named("numbers=elsewhere")]
    shelf = Shelf(listed, {}, Limits())
    shelf.fill({listed[0].name: models["tiny"], "numbers": models["numbers"]})
    with listening(shelf) as url:
        page = look(url)
        page.locator("#server", has_text="2 models").wait_for()
        paste(page, [HOSTILE, "number 4"], query=HOSTILE)
        page.locator("#other").select_option("numbers")
        rank(page)
        page.locator("#copies summary").click()
        docs = look(url + "docs")
        docs.locator("#lines pre").first.wait_for()
        for code in docs.locator("#lines pre").all_inner_texts():
            ast.parse(code)
        for one in (page, docs):
            assert one.evaluate("window.ran") is None
            assert one.locator("img, iframe, object, embed, main b:not(.moved b, .client b)").count() == 0
            assert one.locator("script").count() == 1
        shown = page.locator("#column-0 .text", has_text="<b>bold</b>")
        # What turns letters round ends with its text.
        assert shown.evaluate("e => getComputedStyle(e).unicodeBidi") in ("isolate", "plaintext")


def test_right_to_left_texts_begin_at_the_right(at):
    page = at()
    paste(page, ["يمكنك استئجار دراجة", "hire a bike"])
    rank(page)
    directions = page.locator(".row .text").evaluate_all(
        "all => all.map(one => [one.textContent[0], getComputedStyle(one).direction])"
    )
    assert dict(directions) == {"ي": "rtl", "h": "ltr"}


def test_five_hundred_documents_are_ranked_and_long_ones_fold(at, models):
    page = at()
    documents = [
        f"number {i * 7919 % 500} " + ("and so on, for a long while " * 300 if i % 50 == 0 else "") for i in range(500)
    ]
    paste(page, documents)
    began = time.monotonic()
    rank(page, "numbers")
    assert time.monotonic() - began < 10
    assert order(page) == [hit.index for hit in models["numbers"].rank("which is large", documents)]
    more = page.get_by_role("button", name="more", exact=True)
    assert more.count() == 10
    row = page.locator(f".row[data-i='{next(i for i in order(page) if i % 50 == 0)}']")
    folded, whole = row.bounding_box()["height"], documents[int(row.get_attribute("data-i"))]
    row.get_by_role("button", name="more").click()
    assert row.locator(".text").text_content() == whole and row.bounding_box()["height"] > 10 * folded
    row.get_by_role("button", name="less").click()
    assert row.bounding_box()["height"] == folded


def test_a_changed_text_takes_its_ranking_away(at):
    page = at()
    paste(page, NUMBERS)
    rank(page, "numbers")
    page.locator("#query").fill("which is small")
    assert page.locator("#status").inner_text() == "The query has changed since this ranking."
    page.locator("#documents").fill("\n".join([*NUMBERS, "number 1000"]))
    page.locator("#understood", has_text="5 documents").wait_for()
    assert (
        order(page) == [0, 1, 2, 3, 4]
        and page.locator("#controls").is_hidden()
        and page.locator(".marks:visible").count() == 0
    )
    rank(page)
    assert order(page)[0] == 4


def test_everything_can_be_done_with_the_keyboard(at):
    page = at()
    page.keyboard.press("/")
    page.keyboard.type("which is large")
    page.keyboard.press("Shift+Enter")
    page.keyboard.press("Backspace")
    page.keyboard.press("Tab")
    page.keyboard.insert_text("\n".join(NUMBERS))
    page.keyboard.press("Control+Enter")
    page.locator("#status", has_text="4 documents ranked").wait_for()
    reached = []
    for _ in range(40):
        page.keyboard.press("Tab")
        reached.append(
            page.evaluate(
                "document.activeElement.id || document.activeElement.value || document.activeElement.textContent"
            )
        )
        if reached[-1] == "found":
            page.keyboard.press("ArrowLeft")
            assert order(page) == [0, 1, 2, 3]
        if reached[-1] == "This request with curl, and in Python":
            page.keyboard.press("Enter")
            break
    assert {"how", *EXAMPLES, "model", "other", "rank", "found", "relevance", "threshold", "exact"} <= set(reached)
    page.locator("#curl", has_text="which is large").wait_for()
    page.keyboard.press("/")
    page.keyboard.press("Enter")
    page.locator("#columns[aria-busy=false]").wait_for()


@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_is_wider_than_the_screen(look, site, width):
    page = look(site, viewport={"width": width, "height": 844})
    page.locator("#server", has_text="2 models").wait_for()
    paste(page, ["a" * 400, HOSTILE, "number 7 " * 80, "def f():\n" + " " * 300 + "pass"], query="b" * 300)
    page.locator("#other").select_option("numbers")
    rank(page)
    page.locator("#copies summary").click()
    for button in page.locator(".fold:visible").all():
        button.click()
    settle(page)
    assert page.evaluate(WIDER) == 0
    docs = look(site + "docs", viewport={"width": width, "height": 844})
    docs.locator(".route").first.wait_for()
    docs.evaluate("for (const route of document.querySelectorAll('.route')) route.open = true")
    docs.locator(".inside").last.wait_for()
    assert docs.evaluate(WIDER) == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_in_light_and_dark(look, site, scheme):
    page = look(site, color_scheme=scheme)
    page.locator("#server", has_text="2 models").wait_for()
    paste(page, [*NUMBERS, "a tea"])
    rank(page, "tiny")
    page.get_by_label("Threshold as a number").fill("0.3")
    page.locator("#copies summary").click()
    docs = look(site + "docs#rerank-post", color_scheme=scheme)
    docs.locator("#rerank-post .inside").wait_for()
    for one in (page, docs):
        dark = one.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (dark == "rgb(20, 23, 26)") == (scheme == "dark")
        body = one.evaluate(
            COLOURS, "h1, h2, h3, .row:not(.below) .text, .row:not(.below) .place, pre, td:not(.type), b, #understood"
        )
        assert len(body) > 10 and min(body) >= 4.5
        rest = one.evaluate(
            COLOURS,
            "p, label, .soft, .moved, .below .text, .score, button, a, summary span, .type, code, footer, option",
        )
        assert len(rest) > 10 and min(rest) >= 4.5


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_one_file_with_one_style_and_one_script(name):
    text = Path(rerank.serving.__file__).with_name(name).read_text(encoding="utf8")
    outside = re.sub(r"<script>.*?</script>", "", text, flags=re.DOTALL)
    assert text.count("<script") == text.count("<style") == 1, "the policy names one of each by its hash"
    assert not re.search(r"<[^>]+\s(?:style|on\w+)=", outside), "the policy forbids both"
    assert not re.search(r"(?:src|href)=[\"'](?!data:,|docs|openapi\.json|\./|#)", outside)
    assert not re.search(r"https?://", text.replace("http://www.w3.org/2000/svg", ""))
    assert "innerHTML" not in text and "localStorage" not in text and "sessionStorage" not in text


# ---------------------------------------------------------------------------------------------------------------- docs
@pytest.fixture
def docs(look, site):
    page = look(site + "docs")
    page.locator(".route").first.wait_for()
    return page


def described():
    from rerank.serving.wire.openapi import openapi

    return openapi()


def slug(path):
    return re.sub(r"[^A-Za-z0-9]+", "-", path).strip("-")


def test_every_path_is_drawn_with_its_fields_examples_and_errors(docs):
    spec = described()
    shown = list(
        zip(
            docs.locator(".route .method").all_inner_texts(),
            docs.locator(".route .path").all_inner_texts(),
            strict=True,
        )
    )
    assert sorted(shown) == sorted((method.upper(), path) for path, item in spec["paths"].items() for method in item)
    docs.evaluate("for (const route of document.querySelectorAll('.route')) route.open = true")
    docs.locator(".inside").last.wait_for()
    assert docs.locator(".inside").count() == len(shown)
    for path, item in spec["paths"].items():
        if "post" not in item:
            continue
        route = docs.locator(f"[id='{slug(path)}-post']")
        fields = route.locator(".fields td:first-child code").all_inner_texts()
        assert len(fields) == len(set(fields)) > 2, path
        assert "raw_scores" in fields or path.endswith("score") or "weaviate" in path
        errors = route.locator("table:not(.fields) code").all_inner_texts()
        assert {"400", "401", "413", "422", "429", "503"} <= set(errors)


def test_every_example_can_be_sent_and_is_answered(docs):
    spec = described()
    for path in (path for path, item in spec["paths"].items() if "post" in item):
        docs.evaluate("hash => { location.hash = hash; }", f"{slug(path)}-post")
        route = docs.locator(f"[id='{slug(path)}-post']")
        route.locator(".inside").wait_for()
        examples = max(route.locator("select option").count(), 1)
        for i in range(examples):
            if examples > 1:
                route.locator("select").select_option(index=i)
            with docs.expect_response(f"**{path}") as waiting:
                route.locator(".send").click()
            assert waiting.value.status == 200, (path, waiting.value.text())
            route.locator(".status", has_text="200 OK").wait_for()
            answer = json.loads(route.locator(".answered").text_content())
            assert answer == waiting.value.json()


def test_a_refused_request_shows_the_servers_words(docs):
    docs.evaluate("location.hash = 'v2-rerank-post'")
    route = docs.locator("#v2-rerank-post")
    route.locator("textarea").fill('{"query": "it\'s", "documents": [1]}')
    assert "it'\\''s" in route.locator("pre[aria-label=curl]").text_content()
    route.locator("textarea").press("Control+Enter")
    route.locator(".status.bad", has_text="422").wait_for()
    assert "documents" in json.loads(route.locator(".answered").text_content())["message"]


def test_the_key_of_a_server_can_be_given_where_it_is_asked_for(look, keyed):
    page = look(keyed + "docs#v1-rerank-post")
    route = page.locator("#v1-rerank-post")
    route.locator(".send").click()
    route.locator(".status.bad", has_text="401").wait_for()
    route.get_by_label("Key of this server").fill(KEY)
    assert "$RERANK_API_KEY" in route.locator("pre[aria-label=curl]").text_content()
    route.locator(".send").click()
    route.locator(".status", has_text="200").wait_for()
    assert KEY not in page.url and KEY not in route.locator("pre[aria-label=curl]").text_content()


def test_every_line_for_a_client_is_python_with_this_servers_address(docs, site):
    lines = docs.locator("#lines pre").all_inner_texts()
    assert len(lines) > 8
    paths = set(described()["paths"])
    for code in lines:
        texts = [node.value for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Constant)]
        addresses = [text for text in texts if isinstance(text, str) and text.startswith("http")]
        assert len(addresses) == 1 and addresses[0].startswith(site.rstrip("/"))
        rest = addresses[0].removeprefix(site.rstrip("/"))
        assert not rest or any(path.startswith(rest) for path in paths)
        assert "NAME" not in code and "BASE" not in code


def test_any_openapi_document_is_drawn(look, site):
    following = {"name": {"type": "string", "minLength": 1}, "next": {"$ref": "#/components/schemas/Node"}}
    size = {"type": ["integer", "null"], "minimum": 2, "default": 3}
    sized = {"type": "object", "required": ["size"], "properties": {"size": size}}
    both = {"allOf": [{"$ref": "#/components/schemas/Node"}, sized]}
    one_of_two = {"name": "b", "in": "path", "required": True, "schema": {"enum": ["x", "y"]}}
    body = {"content": {"application/json": {"schema": both}}}
    put = {"tags": ["t"], "summary": "Does `c`", "requestBody": body, "responses": {"204": {"description": "done"}}}
    bare = {"content": {"application/json": {}}}
    post = {"description": "two\n\nparagraphs", "requestBody": bare, "responses": {"default": {"description": "any"}}}
    spec = {
        "openapi": "3.1.0",
        "info": {"title": HOSTILE, "version": "9"},
        "components": {"schemas": {"Node": {"type": "object", "required": ["name"], "properties": following}}},
        "paths": {
            "/a/{b}": {"get": {"parameters": [one_of_two], "responses": {}}},
            "/c": {"put": put},
            "/d": {"post": post},
        },
    }
    page = look(site)
    page.route("**/openapi.json", lambda route: route.fulfill(json=spec))
    page.goto(site + "docs#c-put")
    route = page.locator("#c-put")
    assert json.loads(route.locator("textarea").input_value()) == {"name": "text", "size": 3}
    rows = [re.sub(r"\s+", " ", row) for row in route.locator(".fields tbody tr").all_inner_texts()]
    assert rows[0].startswith("name required text, at least 1 characters") and "object with name, next" in rows[1]
    assert "whole number or null, from 2" in rows[2] and "default 3" in rows[2]
    assert page.locator(".method").all_inner_texts() == ["GET", "POST", "PUT"]
    page.evaluate("for (const one of document.querySelectorAll('.route')) one.open = true")
    page.locator(".inside").nth(2).wait_for()
    assert '"x" or "y"' in page.locator("#a-b-get").inner_text() and page.locator("#clients").is_hidden()
    assert page.evaluate("window.ran") is None and math.isfinite(page.evaluate(WIDER))
