"""The page of the server in a real browser: it shows what the models say, and asks nothing elsewhere."""

import ast
import json
import re
import shutil
import subprocess
import time
from itertools import pairwise
from pathlib import Path

import pytest
from serving_site import (
    HOSTILE,
    KEY,
    WIDER,
    a_browser,
    a_shelf,
    listening,
    looking,
    numbers,
    playwright,
    serving,
    tiny,
    wanting,
)
from test_browser import COLOURS

import rerank.serving
from rerank.serving.limits import Limits

EXAMPLES = ("Sourdough", "Code", "Languages")
PAGES = ("page.html", "docs.html")
ODD = [
    "it's a 'quoted' \\ \"text\"",
    "`echo no` $HOME $(echo no)",
    "two\nlines\tand \u2028 a separator",
    "🚲 😀 日本",
    HOSTILE,
]
NUMBERS = ["number 3", "number 99", "number 1", "number 40"]


@pytest.fixture(scope="module")
def models(tiny_bert):
    return {"tiny": tiny(tiny_bert), "numbers": numbers()}


@pytest.fixture(scope="module")
def site(models):
    with serving(models, aliases=["another=tiny"]) as url:
        yield url


@pytest.fixture(scope="module")
def keyed(models):
    with serving(models, [KEY]) as url:
        yield url


@pytest.fixture(scope="module")
def browser():
    with a_browser() as launched:
        yield launched


@pytest.fixture
def look(browser):
    with looking(browser) as opened:
        yield opened


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


# -------------------------------------------------------------------------------------------------- first-stage scores
SCORED = [
    {"text": "number 3", "first stage": 0.1, "bm25": 9.5, "year": 2020},
    {"text": "number 99", "first stage": 0.3, "bm25": 1},
    {"text": "number 1", "first stage": 0.2},
]


@pytest.fixture(scope="module")
def scored():
    """A model that wants first-stage scores, and the address of a server that asks for a key."""
    model = wanting()
    with serving({"wants": model, "numbers": numbers()}, [KEY]) as url:
        yield model, url


@pytest.fixture
def asked(look, scored):
    """Its page, the key given and no model known yet."""
    page = look(scored[1])
    page.get_by_label("Key of this server").fill(KEY)
    return page


def test_scores_that_come_with_documents_are_handed_to_the_model_that_wants_them(asked, scored):
    paste(asked, SCORED)
    rank(asked)
    assert asked.locator("#understood").inner_text() == "3 documents, a JSON list, with scores of first stage and bm25"
    given = {"first stage": [0.1, 0.3, 0.2], "bm25": [9.5, 1.0, float("nan")]}
    wanted = scored[0].rank("which is large", SCORED, first_stage=given, probabilities=True)
    assert order(asked) == [hit.index for hit in wanted] == [0, 1, 2]
    assert scores(asked) == pytest.approx({hit.index: hit.probability for hit in wanted}, abs=1e-4)
    choose(asked, "logits")
    assert scores(asked) == pytest.approx({hit.index: hit.score for hit in wanted}, abs=1e-4)
    assert asked.locator("#warned").is_hidden()
    body = copied(asked, "curl").partition("-d '")[2].rstrip("'")
    assert json.loads(body)["first_stage"] == {"first stage": [0.1, 0.3, 0.2], "bm25": [9.5, 1, None]}
    assert "'bm25': [9.5, 1, None]" in ast.unparse(ast.parse(asked.locator("#python").text_content()))


def test_a_model_that_goes_without_the_scores_it_wants_says_so_and_how_they_can_be_given(asked, scored):
    paste(asked, NUMBERS)
    rank(asked)
    told = asked.locator("#warned").inner_text()
    assert "first stage, bm25" in told and 'as JSON: {"text": "…", "first stage": 0.64, "bm25": 12.3}' in told
    assert order(asked) == [hit.index for hit in scored[0].rank("which is large", NUMBERS)]
    rank(asked, "numbers")
    asked.locator("#warned").wait_for(state="hidden")
    paste(asked, [{"text": text, "first stage": 1} for text in NUMBERS])
    rank(asked, "wants")
    assert "no document came with a score of bm25" in asked.locator("#warned").inner_text()


def test_other_scores_of_the_same_documents_take_the_ranking_away(asked):
    paste(asked, SCORED)
    rank(asked)
    paste(asked, [{**SCORED[0], "bm25": -50}, *SCORED[1:]])
    asked.locator("#controls").wait_for(state="hidden")
    rank(asked)
    assert order(asked) != [0, 1, 2]


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


def test_what_the_numbers_mean_is_one_step_away(at):
    page = at()
    paste(page, NUMBERS)
    rank(page)
    page.get_by_role("link", name="How to read them").click()
    page.locator("h2", has_text="What the numbers mean").wait_for()
    playwright.expect(page.locator("#h-scores")).to_be_in_viewport()
    assert page.locator("#calibrated").inner_text() == "Here, tiny is calibrated, numbers is not calibrated."


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
    with serving(models, limits=Limits(documents=3)) as url:
        page = look(url)
        page.locator("#server", has_text="2 models").wait_for()
        paste(page, NUMBERS)
        page.locator("#remark", has_text="this server takes 3 documents in a request").wait_for()
        page.locator("#rank").click()
        page.locator("#problem", has_text="4 documents; at most 3").wait_for()


def test_a_key_is_asked_for_and_kept_nowhere(look, keyed):
    page = look(keyed)
    page.locator("#problem", has_text="This server asks for a key: type it into the field for it.").wait_for()
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
    page.locator("#problem", has_text="asks for a key").wait_for()
    assert field.input_value() == ""


def test_a_server_that_is_loading_is_asked_again(look, models):
    shelf = a_shelf(aliases=["another=tiny"])
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
    with serving({HOSTILE: models["tiny"], "numbers": models["numbers"]}) as url:
        page = look(url)
        page.locator("#server", has_text="2 models").wait_for()
        paste(page, [HOSTILE, "number 4"], query=HOSTILE)
        page.locator("#other").select_option("numbers")
        rank(page)
        page.locator("#copies summary").click()
        assert page.evaluate("window.ran") is None
        assert page.locator("img, iframe, object, embed, main b:not(.moved b)").count() == 0
        assert page.locator("script").count() == 1
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


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_in_light_and_dark(look, site, scheme):
    page = look(site, color_scheme=scheme)
    page.locator("#server", has_text="2 models").wait_for()
    paste(page, [*NUMBERS, "a tea"])
    rank(page, "tiny")
    page.get_by_label("Threshold as a number").fill("0.3")
    page.locator("#copies summary").click()
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (dark == "rgb(20, 23, 26)") == (scheme == "dark")
    body = page.evaluate(
        COLOURS, "h1, h2, .row:not(.below) .text, .row:not(.below) .place, pre, b, #understood, #warned li"
    )
    assert len(body) > 10 and min(body) >= 4.5
    rest = page.evaluate(COLOURS, "p, label, .soft, .moved, .below .text, .score, button, a, footer, option")
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
