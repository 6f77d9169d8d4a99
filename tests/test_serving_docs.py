"""The page of requests and clients in a real browser: all that is served is on it, and what it shows can be sent."""

import ast
import builtins
import json
import math
import re

import pytest
from serving_site import HOSTILE, KEY, WIDER, a_browser, looking, numbers, playwright, serving, tiny, wanting
from test_browser import COLOURS

from rerank.serving.wire.openapi import openapi


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
def docs(look, site):
    page = look(site + "docs")
    page.locator(".route").first.wait_for()
    return page


def slug(path):
    return re.sub(r"[^A-Za-z0-9]+", "-", path).strip("-")


def test_every_path_is_drawn_with_its_fields_examples_and_errors(docs):
    spec = openapi()
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
    spec = openapi()
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


def bound(code):
    """The names that Python code makes: what is assigned or imported."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield from (alias.name for alias in node.names)


def read(code):
    """Those that it reads."""
    return {
        node.id for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)
    }


def test_every_line_for_a_client_is_python_with_this_servers_address(docs, site):
    asked, *lines = docs.locator("#lines pre").all_inner_texts()
    assert len(lines) > 8
    paths = set(openapi()["paths"])
    for code in lines:
        texts = [node.value for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Constant)]
        addresses = [text for text in texts if isinstance(text, str) and text.startswith("http")]
        assert len(addresses) == 1 and addresses[0].startswith(site.rstrip("/"))
        rest = addresses[0].removeprefix(site.rstrip("/"))
        assert not rest or any(path.startswith(rest) for path in paths)
        assert "NAME" not in code and "BASE" not in code
        assert read(code) <= {*vars(builtins), *bound(asked), *bound(code)}, "they run behind what is asked"


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
    assert rows[0].startswith("name required text, at least 1 character ") and "object with name, next" in rows[1]
    assert "whole number or null, from 2" in rows[2] and "default 3" in rows[2]
    assert page.locator(".method").all_inner_texts() == ["GET", "POST", "PUT"]
    page.evaluate("for (const one of document.querySelectorAll('.route')) one.open = true")
    page.locator(".inside").nth(2).wait_for()
    assert '"x" or "y"' in page.locator("#a-b-get").inner_text() and page.locator("#clients").is_hidden()
    assert page.evaluate("window.ran") is None and math.isfinite(page.evaluate(WIDER))


# ------------------------------------------------------------------------------------------------------------- models
def test_the_lines_name_a_model_as_soon_as_the_page_may_know_it(look, keyed):
    page = look(keyed + "docs#rerank-post")
    line = page.locator("pre[aria-label=Cohere]")
    line.filter(has_text='model="NAME"').wait_for()
    assert page.locator("#calibrated").is_hidden()
    route = page.locator("#rerank-post")
    route.locator(".send").click()
    route.get_by_label("Key of this server").fill(KEY)
    route.locator(".send").click()
    line.filter(has_text='model="tiny"').wait_for()
    assert KEY not in line.inner_text()


def test_what_models_want_of_their_first_stage_is_listed_and_the_request_shown_is_answered(look):
    given = {"a": wanting(), "b": wanting(), "plain": numbers(), "c": wanting(("dense",))}
    with serving(given) as url:
        page = look(url + "docs#first-stage")
        page.locator(".route").first.wait_for()
        playwright.expect(page.locator("#h-first-stage")).to_be_in_viewport()
        told = page.locator("#wanting").inner_text()
        assert told == (
            "a and b were trained with the scores of first stage and bm25 and rank better with them. "
            "c was trained with the scores of dense and ranks better with them."
        )
        shown = page.locator("#handing pre").inner_text()
        body = json.loads(shown.partition("-d '")[2].rstrip("'"))
        assert list(body["first_stage"]) == ["first stage", "bm25"]
        answer = page.request.post(url + "v2/rerank", data=body)
        assert answer.status == 200 and answer.json()["meta"]["warnings"] == []


def test_without_such_a_model_there_is_no_word_of_them(docs):
    assert docs.locator("#first-stage").is_hidden()
    assert docs.locator("#contents li:visible > .group").all_inner_texts()[:3] == [
        "Clients",
        "What the numbers mean",
        "One path for most clients",
    ]


# ---------------------------------------------------------------------------------------------------------- the screen
def test_what_is_opened_has_an_address(docs, look):
    docs.locator("#v2-rerank-post summary").click()
    assert docs.url.endswith("docs#v2-rerank-post")
    look(docs.url).locator("#v2-rerank-post .inside").wait_for()
    docs.locator("#v2-rerank-post summary").click()
    assert docs.url.endswith("/docs")


@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_is_wider_than_the_screen_or_lies_over_something_else(look, site, width):
    page = look(site + "docs", viewport={"width": width, "height": 844})
    page.locator(".route").first.wait_for()
    page.evaluate("for (const route of document.querySelectorAll('.route')) route.open = true")
    page.locator(".inside").last.wait_for()
    assert page.evaluate(WIDER) == 0
    cut = "all => all.filter(one => one.getClientRects().length > 1).map(one => one.textContent)"
    assert page.locator(".fields td:first-child code").evaluate_all(cut) == []
    sideways = "all => all.filter(one => one.scrollWidth > one.clientWidth).length"
    if width == 390:
        assert page.locator("pre").evaluate_all(sideways) == 0
    for box in page.locator(".client .box").all():
        code, button = box.locator("pre").bounding_box(), box.locator("button").bounding_box()
        assert width > 390 or button["y"] >= code["y"] + code["height"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_in_light_and_dark(look, site, scheme):
    page = look(site + "docs#rerank-post", color_scheme=scheme)
    page.locator("#rerank-post .inside").wait_for()
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (dark == "rgb(20, 23, 26)") == (scheme == "dark")
    body = page.evaluate(COLOURS, "h1, h2, h3, p, pre, td:not(.type), b")
    assert len(body) > 10 and min(body) >= 4.5
    rest = page.evaluate(COLOURS, ".soft, button, a, summary span, .type, code, footer, option")
    assert len(rest) > 10 and min(rest) >= 4.5


def test_the_name_of_a_model_stays_a_text(look, models):
    with serving({HOSTILE: models["tiny"]}) as url:
        page = look(url + "docs")
        page.locator(".route").first.wait_for()
        for code in page.locator("#lines pre").all_inner_texts():
            ast.parse(code)
        assert page.evaluate("window.ran") is None
        assert page.locator("img, iframe, object, embed, main b:not(.client b)").count() == 0
        assert page.locator("script").count() == 1
