"""The reports in a real browser: every query opens, by mouse and by keyboard, and nothing comes from anywhere else."""

import os
import shutil

import pytest
from report_folders import SETS, bench_folder, run_folder

from rerank.evaluation.wording import signed
from rerank.report import write_report
from rerank.report.marking import marked

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install 'rerank[dev]'")

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
RUNNING = "window.ran = (window.ran || 0) + 1"
HOSTILE = f"</script><script>{RUNNING}</script><!--<img src=x onerror='{RUNNING}'>\u202e reversed"
PRIMARY = "nDCG@10"


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
    """Opens a report; afterwards nothing may have gone wrong on the page, and nothing been asked of the outside."""
    contexts, wrong, asked = [], [], []

    def opened(path, **settings):
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **settings})
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: wrong.append(message.text))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("dialog", lambda dialog: (wrong.append(dialog.message), dialog.dismiss()))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(path.as_uri())
        return page

    yield opened
    for context in contexts:
        context.close()
    assert wrong == []
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
    assert len([url for url in asked if url.startswith("file:")]) == len(contexts), "the page itself, and no other file"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(report, table) of a run of 40 queries."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    table = run_folder(folder, queries=40)
    return write_report(folder), table


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """The report of a bench over three sets."""
    folder = tmp_path_factory.mktemp("bench")
    bench_folder(folder)
    return write_report(folder)


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """Both reports of texts, ids and names that try to run."""
    run, bench = tmp_path_factory.mktemp("hostile") / "run", tmp_path_factory.mktemp("hostile-bench")
    run_folder(run, hostile=HOSTILE)
    bench_folder(bench, hostile=HOSTILE)
    return write_report(run), write_report(bench)


def ranked(table, before="light clone", after="light refined"):
    """Query ids and differences, from the largest gain to the largest loss."""
    old, new = (table.per_query[arm][PRIMARY] for arm in (before, after))
    return sorted(((q, round(new[q], 6) - round(old[q], 6)) for q in new), key=lambda item: -item[1])


def drawing(page):
    return page.locator(".drawn .plot svg")


def listing(part, which):
    part.locator(".orders label", has_text=which).click()


def chosen(page):
    """(number of the bar, id, difference shown) of the query that is open."""
    shown = page.locator(".chosen")
    place = int(drawing(page).get_attribute("aria-valuenow"))
    return place, shown.locator(".note .doc-id").inner_text(), shown.locator(".delta").inner_text()


def test_a_click_on_any_bar_opens_its_query_with_both_lists(look, trained):
    path, table = trained
    page = look(path)
    order = ranked(table)
    bars = page.locator(".drawn .bar")
    assert bars.count() == 40
    drawing(page).scroll_into_view_if_needed()
    for number in (0, 17, 39):
        box, plot = bars.nth(number).bounding_box(), drawing(page).bounding_box()
        page.mouse.click(box["x"] + box["width"] / 2, plot["y"] + plot["height"] / 2)
        place, _, difference = chosen(page)
        assert (place, difference) == (number + 1, signed(order[number][1]))
        assert "on" in bars.nth(number).get_attribute("class")
        assert page.locator(".chosen .ranking").count() == 2
        assert page.locator(".chosen .ranking").nth(0).locator("li").count() == 10
    assert page.locator(".most").is_hidden()


def test_arrows_go_from_bar_to_bar_and_through_the_list(look, trained):
    path, table = trained
    page = look(path)
    drawing(page).focus()
    seen = [chosen(page)]
    for _ in range(3):
        page.keyboard.press("ArrowRight")
        seen.append(chosen(page))
    assert [place for place, *_ in seen] == [1, 2, 3, 4]
    assert [difference for *_, difference in seen] == [signed(d) for _, d in ranked(table)[:4]]
    page.keyboard.press("End")
    assert chosen(page)[0] == 40
    page.keyboard.press("ArrowRight")
    assert chosen(page)[0] == 40
    page.keyboard.press("Home")
    assert chosen(page)[0] == 1
    page.locator(".found").focus()
    page.keyboard.press("ArrowDown")
    option = page.locator(".found [aria-selected=true]")
    assert option.count() == 1 and chosen(page)[0] == 2
    assert page.locator(".found").get_attribute("aria-activedescendant") == option.get_attribute("id")
    page.locator(".steps button").nth(1).click()
    assert chosen(page)[0] == 3


def test_the_search_keeps_the_queries_with_all_its_words(look, trained):
    page = look(trained[0])
    listing(page, "All")
    assert page.locator(".found li").count() == 40
    search = page.get_by_label("Search the queries")
    search.fill("TEXT q17")
    assert page.locator(".found li").count() == 1
    assert page.locator(".drawn .bar:not(.off)").count() == 1
    search.press("Enter")
    assert chosen(page)[1] == "q17"
    search.fill("no such words")
    assert (
        page.locator(".found li").count() == 0 and "No query has these words." in page.locator(".beyond").inner_text()
    )
    search.fill("")
    assert page.locator(".found li").count() == 40


def test_gains_losses_and_all_are_listed_in_their_order(look, trained):
    path, table = trained
    page = look(path)
    differences = [d for _, d in ranked(table)]

    def listed(which):
        listing(page, which)
        return page.locator(".found .delta").all_inner_texts()

    assert listed("Gains") == [signed(d) for d in differences if d > 0]
    assert listed("Losses") == [signed(d) for d in reversed(differences) if d < 0]
    everything = listed("All")
    assert len(everything) == 40 and everything[0] == signed(max(differences, key=abs))


def test_any_two_arms_can_be_compared(look, trained):
    path, table = trained
    page = look(path)
    before, after = page.get_by_label("Compare from"), page.get_by_label("Compare to")
    assert before.locator("option").all_inner_texts() == list(table.arms)
    query = chosen(page)[1]
    before.select_option(label="light labels")
    assert f"{PRIMARY} of light refined minus light labels" in page.locator(".counts").inner_text()
    assert page.locator(".chosen h4").all_inner_texts() == ["Before: light labels", "After: light refined"]
    difference = dict(ranked(table, "light labels"))[query]
    assert chosen(page)[1:] == (query, signed(difference))
    # The same arm on both sides says nothing: the two change places.
    after.select_option(label="light labels")
    assert page.locator(".chosen h4").all_inner_texts() == ["Before: light refined", "After: light labels"]


def test_moved_documents_and_words_of_the_query_are_marked(look, trained):
    page = look(trained[0])
    after = page.locator(".chosen .ranking").nth(1)
    up = after.locator("li.up")
    assert up.count() > 0 and all("↑" in text for text in up.locator(".moved").all_inner_texts())
    assert set(page.locator(".chosen mark").all_inner_texts()) == {"text"}
    first = after.locator("li").first
    first.hover()
    twins = page.locator(".chosen li.twin")
    assert {twins.nth(i).get_attribute("data-doc") for i in range(twins.count())} == {first.get_attribute("data-doc")}


@pytest.mark.parametrize(
    ("text", "query"),
    [
        ("Cats & <b>dogs</b> in class, the CAT.", "what is the cat's class"),
        ("patch_object(__patch__, patch2)", "`patch` acts"),
        ("Ölpreise und ÖL: über", "öl überall"),
        ("搜索 引擎 的 排序", "排序 模型"),
        ("\u202egnp.exe in İstanbul", "istanbul exe"),
        ("", ""),
    ],
)
def test_the_script_marks_what_the_page_marks_without_it(look, trained, text, query):
    page = look(trained[0])
    code = "([t, q]) => { const e = document.createElement('p'); e.append(...marked(t, q)); return e.innerHTML; }"
    made = page.evaluate(code, [text, query])
    assert made.replace("&#39;", "'") == str(marked(text, query)).replace("&#39;", "'")


def test_a_query_without_documents_says_why(look, tmp_path):
    run_folder(tmp_path / "run", most_bytes=1_500)
    page = look(write_report(tmp_path / "run"))
    drawing(page).focus()
    counts = []
    for key in ["Home", *["ArrowRight"] * 11]:
        page.keyboard.press(key)
        counts.append(page.locator(".chosen .ranking").count())
        assert counts[-1] or "are not in this page" in page.locator(".chosen").inner_text()
    assert {0, 2} == set(counts)


def test_an_address_leads_to_its_query_and_set(look, measured):
    page = look(measured)
    beta = page.locator("#set-beta")
    assert beta.locator(".controls").count() == 0, "a set is made when it is opened"
    beta.locator("summary").first.click()
    beta.locator(".chosen h3").wait_for()
    beta.locator(".found").focus()
    page.keyboard.press("ArrowDown")
    query = beta.locator(".chosen .note .doc-id").inner_text()
    page.evaluate("document.querySelector('#set-beta').open = false")
    assert page.url.endswith(f"#q/beta/{query}")
    page.evaluate("location.hash = '#q/gamma/gamma-7'")
    page.wait_for_function("document.querySelector('#set-gamma').open")
    assert page.locator("#set-gamma .chosen .note .doc-id").inner_text() == "gamma-7"
    page.evaluate("location.hash = '#q/nowhere/%'")
    page.evaluate("location.hash = '#q/gamma/no-such-query'")


def test_every_set_of_a_bench_opens_with_its_own_queries(look, measured):
    page = look(measured)
    for name in SETS:
        fold = page.locator(f"#set-{name}")
        fold.locator("summary").first.click()
        fold.locator(".chosen h3").wait_for()
        assert fold.locator(".drawn .bar").count() == 30
        assert fold.locator(".chosen .note .doc-id").inner_text().startswith(f"{name}-")
        count = 2 if name == "gamma" else 3
        assert fold.get_by_label("Compare from").locator("option").count() == count
    listing(page.locator("#set-alpha"), "All")
    assert page.locator("#set-beta .orders input:checked").get_attribute("value") == "gains", "each has its own"


@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_is_wider_than_the_screen(look, trained, measured, hostile, width):
    for path in (trained[0], measured, *hostile):
        page = look(path, viewport={"width": width, "height": 844})
        page.evaluate("for (const fold of document.querySelectorAll('main details')) fold.open = true")
        page.wait_for_function("document.querySelectorAll('.explorer[data-lists]:not(:has(.chosen h3))').length === 0")
        assert page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") == 0


COLOURS = """selector => {
  const channel = value => (value /= 255) <= .04045 ? value / 12.92 : ((value + .055) / 1.055) ** 2.4;
  const sheet = Object.assign(document.createElement('canvas'), {width: 1, height: 1});
  const canvas = sheet.getContext('2d', {willReadFrequently: true});
  const light = colour => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data;
    return a ? .2126 * channel(r) + .7152 * channel(g) + .0722 * channel(b) : null;
  };
  return [...document.querySelectorAll(selector)].filter(e => e.offsetParent && e.textContent.trim()).map(e => {
    let under = e;
    while (under && light(getComputedStyle(under).backgroundColor) === null) under = under.parentElement;
    const back = light(getComputedStyle(under || document.body).backgroundColor);
    const [low, high] = [light(getComputedStyle(e).color), back].sort((a, b) => a - b);
    return (high + .05) / (low + .05);
  });
}"""
"""The contrast of each element's text to what it stands on, as WCAG 2 computes it."""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_in_light_and_dark(look, trained, measured, scheme):
    for path in (trained[0], measured):
        page = look(path, color_scheme=scheme)
        dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (dark == "rgb(20, 23, 26)") == (scheme == "dark")
        body = page.evaluate(
            COLOURS, "main p:not(.note), main li:not(.note li), main td > span:not(.best), main dd, h1, h2, h3"
        )
        assert len(body) > 10 and min(body) >= 7
        others = page.evaluate(COLOURS, ".note, small, .delta, .moved, .grade, .controls label, .orders span, footer p")
        assert len(others) > 10 and min(others) >= 4.5


def test_hostile_texts_and_names_stay_texts(look, hostile):
    for path in hostile:
        page = look(path)
        page.evaluate("for (const fold of document.querySelectorAll('main details')) fold.open = true")
        page.wait_for_function("document.querySelectorAll('.explorer[data-lists]:not(:has(.chosen h3))').length === 0")
        drawing(page).first.focus()
        page.keyboard.press("ArrowRight")
        assert page.evaluate("window.ran") is None
        assert page.locator("img, iframe, object, embed").count() == 0
        assert page.locator("script:not([type])").count() == 1
        shown = page.locator(".chosen .text").first
        assert "</script>" in shown.inner_text()
        # What turns letters round ends with its text: the rank before it and the text after it stay as they are.
        assert shown.evaluate("e => getComputedStyle(e).unicodeBidi") in ("isolate", "plaintext")


def test_without_a_script_the_largest_changes_are_there_and_their_bars_lead_to_them(look, trained):
    page = look(trained[0], java_script_enabled=False)
    assert page.locator(".most").is_visible() and page.locator(".controls").count() == 0
    assert page.locator(".change").count() >= 5
    link = page.locator(".plot a").nth(1)
    assert link.get_attribute("href") == "#run-change-1"
    page.locator(".change").nth(1).locator("summary").first.click()
    assert page.locator("#run-change-1 .ranking").first.is_visible()


def test_on_paper_the_largest_changes_take_the_place_of_the_controls(look, trained):
    page = look(trained[0])
    page.emulate_media(media="print")
    assert page.locator(".most").is_visible() and not page.locator(".controls").is_visible()
    assert not page.locator(".chosen").is_visible()
