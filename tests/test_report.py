"""The HTML reports: self-contained, safe with hostile texts, and honest about what they were not given."""

import base64
import hashlib
import json
import logging
import re
from dataclasses import fields
from html.parser import HTMLParser

import pytest
from report_folders import SETS, bench_folder, diagnosed, run_folder

from rerank.errors import DataError, InputError, NotFound
from rerank.evaluation import compare
from rerank.evaluation.across import across
from rerank.evaluation.tables import Cell, Comparison, Table
from rerank.evaluation.wording import decimal, signed
from rerank.report import write_report
from rerank.report.audited import MEANINGS, audits
from rerank.report.bench_page import bench_page
from rerank.report.drawing import curve, gains, plot, round_axis, spots, stages
from rerank.report.findings import calibrations, diagnoses
from rerank.report.forests import forests, models_of
from rerank.report.marking import marked
from rerank.report.side_by_side import SideBySide, side_by_side
from rerank.report.train_page import FILES
from rerank.training.audit import Audit
from rerank.types import Collection, Run

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(1)>\"'&"
SECTIONS = [
    "answer", "table", "stages", "gain", "queries", "run-changes", "audit", "diagnosis", "calibration", "training",
    "again",
]  # fmt: skip
VOID = {"meta", "link", "br", "img", "hr", "input"}


class Page(HTMLParser):
    """What a browser would make of the page: its tags, its text, and whether every tag is closed in order."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.texts, self.open = [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data):
        self.texts.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())

    def ids(self):
        return [attrs["id"] for _, attrs in self.tags if "id" in attrs]


def report_of(folder):
    path = write_report(folder)
    assert path == folder / "report.html" and not (folder / "report.html.partial").exists()
    text = path.read_text(encoding="utf-8")
    return text, Page(text)


def test_the_page_gives_the_answer_first_and_then_everything_it_rests_on(tmp_path):
    table = run_folder(tmp_path / "run")
    _, page = report_of(tmp_path / "run")
    assert page.open == []
    assert [i for i in page.ids() if i in SECTIONS] == SECTIONS
    assert len(page.ids()) == len(set(page.ids()))
    claim = table.verdict()[0].partition(" (")[0]
    assert claim in page.text and page.text.index(claim) < page.text.index("The numbers")
    for expected in ("1,200 documents", "seeds 0, 1", "1 h 6 min in all", "2 min 15 s", "9f2c", "rerank 0.1.0"):
        assert expected in page.text
    assert "id = 'made-up'" in page.text and "a note" in page.text


def test_the_lead_is_the_refined_arm_against_its_controls_and_tells_the_seeds(tmp_path):
    table = run_folder(tmp_path / "run", queries=40, seeds=2)
    _, page = report_of(tmp_path / "run")
    lead = table.conclusion("light refined", ["light labels"])
    assert page.text.index(lead.partition(" (")[0]) < page.text.index(table.verdict()[0].partition(" (")[0])
    assert "Numbers are means over 2 seeds." in page.text and "2 of 2" in page.text
    assert f"± {decimal(table.arms['light refined']['nDCG@10'].spread)}" in page.text
    run_folder(tmp_path / "single")
    _, single = report_of(tmp_path / "single")
    assert (
        "means over" not in single.text.lower().replace("means over the judged queries,", "") and "±" not in single.text
    )


def test_the_new_sections_show_what_their_files_hold(tmp_path):
    table = run_folder(tmp_path / "run", queries=40)
    _, page = report_of(tmp_path / "run")
    c = table.between("light random reward", "light clone")
    assert c.difference < 0 and "The corrupted reward does not gain measurably over light clone" in page.text
    for title in ("Main arms", "Controls", "Corrupted lessons"):
        assert title in page.text
    assert "Refine: there is headroom." in page.text
    assert "Headroom ideal minus greedy: what is left to gain .422" in page.text
    # Diagnosis: greedy and expected of the clone, its absent KL, distinct tops, both agreements.
    assert "light clone .500 .400 – 120.5 .620 .310" in page.text  # noqa: RUF001
    assert "light clone −.12 −.40 +.50" in page.text  # noqa: RUF001
    assert "light clone float32 > 99.9 % 41.5 %" in page.text
    assert "Affine fit p = sigmoid(1.31 · score − 0.774), measured on 1,800 candidates, 21.3 % of them" in page.text  # noqa: RUF001
    assert "Expected calibration error .1432 .0211 Brier score .1833 .1322" in page.text
    assert "80 % .720 33.5 % 95 % – –" in page.text  # noqa: RUF001


def test_the_page_needs_nothing_from_outside(tmp_path):
    run_folder(tmp_path / "run")
    text, page = report_of(tmp_path / "run")
    assert not re.search(r"https?:|//[a-z]+\.|@import|url\(", text)
    for tag, attrs in page.tags:
        assert "src" not in attrs and attrs.get("href", "#")[0] in "#d", (tag, attrs)
    policy = next(a["content"] for _, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    script = re.search(r"<script>(.*?)</script>", text, re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert "default-src 'none'" in policy and f"script-src 'sha256-{digest}'" in policy


def test_texts_and_ids_that_look_like_markup_stay_text(tmp_path):
    run_folder(tmp_path / "plain")
    run_folder(tmp_path / "hostile", hostile=HOSTILE)
    _, plain = report_of(tmp_path / "plain")
    text, page = report_of(tmp_path / "hostile")
    assert page.open == []
    # Which words of a text are marked as the query's own hangs on the words; no other tag may.
    tags, expected = ([(tag, sorted(attrs)) for tag, attrs in p.tags if tag != "mark"] for p in (page, plain))
    assert tags == expected
    assert text.count("<script>") == 1 and "alert(1)" in page.text


def test_every_link_leads_somewhere_and_every_drawing_is_named(tmp_path):
    run_folder(tmp_path / "run")
    _, page = report_of(tmp_path / "run")
    links = [a["href"][1:] for tag, a in page.tags if tag == "a"]
    assert len(links) > 3 and set(links) <= set(page.ids())
    assert {f"run-change-{i}" for i in range(3)} <= set(links)
    for _, attrs in page.tags:
        assert attrs.get("role") not in ("img", "group") or attrs["aria-label"]
    assert {a["aria-labelledby"] for _, a in page.tags if "aria-labelledby" in a} <= set(page.ids())


@pytest.mark.parametrize(
    ("absent", "gone"),
    [
        ("changes.json", ["run-changes"]),
        ("metrics.jsonl", ["training"]),
        ("summary.json", ["audit", "again"]),
        ("diagnosis.json", ["diagnosis"]),
        ("calibration.json", ["calibration"]),
    ],
)
def test_an_absent_file_is_named_and_the_rest_is_shown(tmp_path, absent, gone):
    run_folder(tmp_path / "run", leave_out=[absent])
    _, page = report_of(tmp_path / "run")
    assert [i for i in page.ids() if i in SECTIONS] == [s for s in SECTIONS if s not in gone]
    assert f"so not shown: {absent}." in page.text


def test_a_table_alone_makes_a_report_titled_by_its_folder(tmp_path):
    run_folder(tmp_path / "my run", leave_out=FILES, seconds=False)
    _, page = report_of(tmp_path / "my run")
    assert "my run" in page.text and page.open == []
    assert [i for i in page.ids() if i in SECTIONS] == ["answer", "table", "stages", "gain", "queries"]


def test_one_arm_compared_with_nothing_is_reported_as_such(tmp_path):
    qrels = {"q1": {"a": 1}, "q2": {"a": 0}}
    table = compare({"only": Run({"q1": (("a", 1.0),)})}, qrels, ["nDCG@10"], [])
    (tmp_path / "table.json").write_text(json.dumps(table.to_json()))
    _, page = report_of(tmp_path)
    assert "only was compared with no other arm" in page.text
    assert "Without a relevant document: 1 of the 2 judged queries" in page.text
    assert "only has no document for 1 judged query; it counts 0" in page.text


def test_one_query_and_a_judge_that_sees_no_difference_can_be_drawn(tmp_path):
    qrels, same = {"q": {"a": 1}}, Run({"q": (("a", 1.0),)})
    table = compare({"a": same, "b": same}, qrels, ["nDCG@10"], [("a", "b")])
    (tmp_path / "table.json").write_text(json.dumps(table.to_json()))
    _, page = report_of(tmp_path)
    assert "a and b cannot be tested on 1 judged query" in page.text
    assert "0 gained, 1 unchanged, 0 lost" in page.text


def test_a_folder_without_a_table_says_what_to_do(tmp_path):
    with pytest.raises(NotFound, match=r"table\.json does not exist.*evaluate the run first"):
        write_report(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("table.json", "{", r"table\.json:1: this is not JSON"),
        ("table.json", "[]", "JSON object is needed"),
        ("table.json", "[" * 100_000, r"table\.json: this is not JSON"),
        ("table.json", "{}", "not a table"),
        ("changes.json", '{"changes": [{"query_id": "q"}]}', r"changes\.json: these are not changes"),
        ("diagnosis.json", '{"arms": [1]}', r"diagnosis\.json: arms must be an object of objects"),
        ("calibration.json", '{"light": 1}', r"calibration\.json: calibration must be an object of objects"),
        ("summary.json", '{"audit": {"light": "fine"}}', r"summary\.json: audit must be an object of objects"),
    ],
)
def test_a_broken_file_is_named_with_its_line(tmp_path, name, content, words):
    run_folder(tmp_path / "run")
    (tmp_path / "run" / name).write_text(content)
    with pytest.raises(DataError, match=words):
        write_report(tmp_path / "run")
    assert not (tmp_path / "run" / "report.html").exists()


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("table.json", {"measures": 3}, r"table\.json: "),
        ("table.json", {"queries": [1]}, r"run: a value is missing or of another kind"),
        ("table.json", {"measures": ["nDCG@10", "gone"]}, r"run: .*KeyError: 'gone'"),
        ("table.json", {"seeds": {"light clone": "two"}}, r"run: a value is missing or of another kind"),
        ("changes.json", {"queries": 7}, r"changes\.json: these are not changes written by SideBySide"),
        ("changes.json", {"queries": [["q", "what", [0.5], []]]}, r"changes\.json: .*not one value and one rank"),
        ("changes.json", {"documents": []}, r"changes\.json: .*IndexError"),
        ("changes.json", {"after": "nobody"}, r"changes\.json: .*not both among the arms"),
        ("calibration.json", {"light": {"n": 3, "a": 1, "b": True}}, None),
        ("summary.json", {"data": ["test"]}, r"run: .*has no attribute 'items'"),
        ("summary.json", {"versions": 3}, r"run: .*has no attribute 'items'"),
        ("summary.json", {"seconds_total": "long"}, r"run: .*TypeError"),
    ],
)
def test_a_value_of_another_kind_is_told_and_no_report_is_left_half_written(tmp_path, name, change, words):
    folder = tmp_path / "run"
    run_folder(folder)
    path = folder / name
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    if words is None:
        report_of(folder)
        return
    with pytest.raises(DataError, match=words):
        write_report(folder)
    assert not (folder / "report.html").exists()


@pytest.mark.parametrize(
    ("broken", "told"),
    [
        ('{"model": "light", "sta', r"metrics\.jsonl:41: 1 line left out"),
        (
            '{"model": "light", "sta{"step": 1}\n3\n' + "[" * 100_000 + '\n{"step": 2}\n',
            r"metrics\.jsonl:41: 3 lines left out",
        ),
    ],
)
def test_log_lines_of_a_killed_run_that_do_not_parse_are_left_out_and_counted(tmp_path, caplog, broken, told):
    run_folder(tmp_path / "run")
    with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
        file.write(broken)
    with caplog.at_level(logging.WARNING):
        _, page = report_of(tmp_path / "run")
    assert len(caplog.records) == 1 and re.search(told, caplog.text)
    assert "light · clone" in page.text


def test_a_step_that_a_resumed_run_repeated_counts_once_as_it_last_was_in_the_order_of_steps():
    def drawn(told):
        return stages([{"model": "a", "stage": "clone", "step": s, "loss": v} for s, v in told], "nDCG@10")

    assert drawn([(1, 9.0), (2, 5.0), (3, 7.0), (2, 2.0), (3, 1.0)]) == drawn([(1, 9.0), (2, 2.0), (3, 1.0)])
    assert drawn([(3, 1.0), (1, 9.0)]) == drawn([(1, 9.0), (3, 1.0)])


def test_a_lone_surrogate_is_shown_as_its_escape(tmp_path):
    run_folder(tmp_path / "run", hostile="\\")
    path = tmp_path / "run" / "summary.json"
    path.write_text(json.dumps({"title": "broken \ud800 title"}))
    assert "broken \\ud800 title" in report_of(tmp_path / "run")[1].text


@pytest.mark.parametrize(("low", "high"), [(0.431, 0.462), (0, 0), (0.3, 0.3), (-2, 900), (0.12345, 0.12346), (1, 400)])
def test_an_axis_covers_its_values_with_few_round_ticks(low, high):
    axis = round_axis(low, high)
    assert axis.low <= low <= high <= axis.high and 2 <= len(axis.ticks) <= 8
    assert axis.at(axis.low) == 0 and axis.at(axis.high) == 100
    shown = [f"{t:.{axis.places}f}" for t in axis.ticks]
    assert len(set(shown)) == len(shown), "ticks must be told apart by what is printed"
    assert all(float(s) == pytest.approx(t, abs=1e-9) for s, t in zip(shown, axis.ticks, strict=True))


def test_gains_are_sorted_and_stay_inside_the_drawing():
    drawn = gains({"a": -0.5, "b": 1.0, "c": 0.0}, {"a": 4})
    assert [b.query_id for b in drawn.bars] == ["b", "c", "a"] and drawn.counts == (1, 1, 1)
    assert (drawn.top, drawn.bottom) == (1.0, -0.5) and drawn.zero == pytest.approx(100 * 2 / 3, abs=0.01)
    assert [b.change for b in drawn.bars] == [None, None, 4]
    many = gains({f"q{i}": (i - 3000) / 6000 for i in range(6000)}, {})
    assert len(many.bars) == 1000 and sum(many.counts) == 6000
    for bar in (*drawn.bars, *many.bars):
        assert -0.5 <= bar.y and bar.y + bar.height <= 100.5 and 0 <= bar.x and bar.x + bar.width <= 100.1
    assert gains({}, {}) is None


def test_curves_skip_what_is_not_a_number_and_thin_out_long_runs():
    records = [{"step": s, "loss": 1.0 if s % 2 else float("nan")} for s in range(5000)]
    drawn = curve(records, "loss", "loss")
    assert 100 < len(drawn.points) <= 240 and drawn.last == 1.0
    assert all(0 <= x <= 100 and 0 <= y <= 100 for x, y in drawn.points)
    assert curve([{"step": 1, "loss": None}, {"loss": 2.0}], "loss", "loss") is None


def test_stages_keep_their_order_and_fall_back_to_the_measure_that_was_recorded():
    records = [
        {"model": "a", "stage": "refine", "step": 1, "RR@10": 0.5},
        {"model": "a", "stage": "clone", "step": 1, "loss": 0.5},
        {"model": "a", "stage": "calibrate", "seconds": 3.0},
    ]
    found = stages(records, "nDCG@10")
    assert [(title, [c.title for c in curves]) for title, curves in found] == [
        ("a · refine", ["RR@10 on dev"]),
        ("a · clone", ["loss"]),
    ]


def test_arms_belong_to_the_model_whose_clone_and_refined_arm_share_their_first_words():
    arms = ["first stage", "bge clone", "bge longer clone", "bge refined", "bge labels refined", "bge labels"]
    assert models_of(arms) == {"": ["first stage"], "bge": arms[1:]}
    large = ["bge large clone", "bge large refined", "bge large labels"]
    assert models_of([*arms, *large]) == {"": ["first stage"], "bge": arms[1:], "bge large": large}
    assert models_of(["clone", "longer clone", "refined", "labels refined"]) == {
        "": ["clone", "longer clone", "refined", "labels refined"]
    }


def forest_table(corrupted_p):
    """Clone .5; refined, its control and a corrupted reward above it, the last with a p-value of choice."""
    means = {"first stage": 0.4, "clone": 0.5, "refined": 0.6, "labels": 0.56, "random reward": 0.53}

    def compared(arm, against, p=0.0, by_seed=()):
        d = means[arm] - means[against]
        return Comparison(arm, against, "nDCG@10", d, d - 0.02, d + 0.02, p, p, 9, 1, 0, 1.0, by_seed)

    return Table(
        measures=("nDCG@10",),
        arms={arm: {"nDCG@10": Cell(m, m - 0.05, m + 0.05)} for arm, m in means.items()},
        comparisons=[
            compared("refined", "labels"),
            compared("refined", "clone", by_seed=(0.08, 0.12)),
            compared("labels", "clone"),
            compared("clone", "first stage"),
            compared("random reward", "clone", corrupted_p),
        ],
        queries=10,
    )


GROUPS = {"clone": "main", "refined": "main", "labels": "control", "random reward": "corrupted"}


def test_the_forest_holds_every_tested_arm_against_the_clone_in_its_group():
    [forest] = forests(forest_table(0.3), GROUPS)
    assert [(title, [r.arm for r in rows]) for title, rows in forest.groups] == [
        ("Main arms", ["refined"]),
        ("Controls", ["labels"]),
        ("Corrupted lessons", ["random reward"]),
        ("Other arms", ["first stage"]),
    ]
    rows = {r.arm: r for _, group in forest.groups for r in group}
    axis = forest.axis
    assert axis.low <= -0.12 and axis.high >= 0.12 and forest.zero == axis.at(0)
    assert rows["first stage"].difference == pytest.approx(-0.1), "the test of clone against it, turned round"
    assert rows["first stage"].left == pytest.approx(axis.at(-0.12)) and rows["first stage"].measurable
    assert rows["refined"].seeds == pytest.approx((axis.at(0.08), axis.at(0.12)))
    assert not rows["random reward"].measurable
    assert str(forest.concluded) == "refined is better than its control labels by .040 nDCG@10"
    assert forest.decisive.against == "labels" and forest.corrupted.startswith("The corrupted reward does not gain")


def test_a_corrupted_reward_that_gains_is_said_aloud_and_no_groups_means_no_conclusion():
    [forest] = forests(forest_table(0.001), GROUPS)
    assert forest.corrupted.startswith(
        "random reward gains over clone too, at least in part because its best step was chosen on true dev labels: so "
        "much of a gain needs no true reward in training"
    )
    [plain] = forests(forest_table(0.001), {})
    assert (plain.concluded, plain.decisive, plain.corrupted) == (None, None, "")
    assert [title for title, _ in plain.groups] == ["Other arms"]


def test_a_plot_of_several_arms_doubles_its_axis_and_keeps_what_it_was_given_to_draw():
    curves = {"refined": [(1.0, 0.4), (4.0, 0.6), (2.0, 0.5)], "clone": [(1.0, 0.4)], "other": [(1.0, 0.1), (2.0, 0.9)]}
    drawn = plot("t", "k", curves, {"refined": 0, "clone": 1}, doubling=True)
    assert [drawn.x.label(t) for t in drawn.x.ticks] == ["1", "2", "4"]
    [series] = drawn.series
    assert series.name == "refined" and [x for x, _ in series.points] == [0, 50, 100]
    assert [y for _, y in series.points] == [round(100 - drawn.y.at(v), 3) for v in (0.4, 0.5, 0.6)]
    assert plot("t", "k", {"clone": [(1.0, 0.4)]}, {"clone": 0}, doubling=True) is None


def test_reliability_spots_stand_at_their_probabilities_and_grow_with_their_number():
    low, high = spots([(0.1, 0.2, 25), (0.9, 1.0, 100)])
    assert (low.x, low.y, high.x, high.y) == (10, 80, 90, 0)
    assert high.radius - 2.5 == pytest.approx(2 * (low.radius - 2.5)), "four times as many, twice as wide"
    assert low.text == "predicted .100, observed .200, 25 candidates"


def test_a_diagnosis_with_holes_shows_dashes_and_arms_without_a_colour_are_named():
    arms = {"clone": {"greedy": None, "kl": float("nan"), "best_at": None, "weights_changed": None}, "refined": {}}
    [bare] = diagnoses({"arms": arms})
    assert bare.plots == () and bare.styles == () and bare.correlations is None and bare.weights is None
    assert set(bare.numbers.rows[0][1]) == {"–"}  # noqa: RUF001
    [many] = diagnoses({"arms": {f"arm {i}": diagnosed(0.01 * i) for i in range(10)} | {"refined": diagnosed(0.3)}})
    assert many.styles[0] == ("refined", 0) and len(many.styles) == 10 and many.undrawn == ("arm 9",)
    assert [p.title for p in many.plots] == ["Best of k sampled rankings", "Entropy by rank, in nats"]
    assert diagnoses({"arms": {}}) == diagnoses({}) == calibrations({}) == []
    [bare] = calibrations({"m": {"kind": "isotonic", "a": None, "bins": None}})
    assert bare.how == "Isotonic fit, measured on candidates that were not counted" and bare.spots == ()


def two_arms():
    """Three queries under two arms: one gains, one loses a little, one stays."""
    qrels = {"up": {"x": 1}, "down": {"x": 2}, "same": {"x": 1}}
    x_first, y_first = (("x", 3.0), ("y", 2.0), ("z", 1.0)), (("y", 3.0), ("z", 2.5), ("x", 2.0))
    second = (("y", 3.0), ("x", 2.0), ("z", 1.0))
    before = Run({"up": y_first, "down": x_first, "same": x_first})
    after = Run({"up": x_first, "down": second, "same": x_first})
    collection = Collection({"x": "t" * 900, "y": "short", "z": ""}, {q: f"query {q}" for q in qrels}, qrels)
    return {"before": before, "after": after}, qrels, collection


def test_side_by_side_holds_every_query_under_every_arm():
    runs, qrels, collection = two_arms()
    told = side_by_side(runs, qrels, collection, "RR", shown=2)
    assert [(q.query_id, q.values) for q in told.queries] == [
        ("up", (1 / 3, 1.0)),
        ("down", (1.0, 1 / 2)),
        ("same", (1.0, 1.0)),
    ]
    up = told.queries[0]
    assert [(d.doc_id, d.grade, d.ranks) for d in up.documents] == [
        ("y", None, (1, 2)),
        ("z", None, (2, 3)),
        ("x", 1, (3, 1)),
    ]
    assert {d: len(text) for d, text in told.texts.items()} == {"y": 5, "z": 0, "x": 400}


def test_the_largest_changes_show_both_rankings_with_grades_and_movement():
    qrels = {"up": {"x": 1}, "down": {"x": 1}, "same": {"x": 1}, "slightly": {"x": 1}}
    first, second, third = (("x", 3.0), ("y", 2.0), ("z", 1.0)), (("y", 3.0), ("x", 2.0)), (("y", 3.0), ("z", 2.0))
    before = Run({"up": third, "down": first, "same": first, "slightly": second})
    after = Run({"up": first, "down": second, "same": first, "slightly": first})
    collection = Collection({"x": "t" * 900, "y": "short", "z": ""}, {q: f"query {q}" for q in qrels}, qrels)
    told = side_by_side({"old": before, "new": after}, qrels, collection, measure="rr", shown=2)
    changes = told.largest(5)
    assert [(c.query_id, c.difference) for c in changes] == [("up", 1), ("slightly", 1 / 2), ("down", -1 / 2)]
    up = changes[0]
    assert up.query == "query up" and (up.value_before, up.value_after, up.measure) == (0, 1, "RR")
    assert [(p.rank, p.doc_id, p.grade, p.other_rank) for p in up.before] == [(1, "y", None, 2), (2, "z", None, 3)]
    assert [(p.rank, p.doc_id, p.grade, p.other_rank) for p in up.after] == [(1, "x", 1, None), (2, "y", None, 1)]
    assert len(up.after[0].text) == 400 and up.after[0].text.endswith("…") and up.after[1].text == "short"
    assert [c.query_id for c in told.largest(1)] == ["up", "down"]


def test_texts_that_the_collection_lacks_are_counted_aloud(caplog):
    before, after = Run({"q": (("y", 1.0), ("x", 0.0))}), Run({"q": (("x", 1.0), ("y", 0.0))})
    with caplog.at_level(logging.WARNING):
        told = side_by_side({"old": before, "new": after}, {"q": {"x": 1}}, Collection({"x": "text"}, {}))
    [change] = told.largest()
    assert change.query == "" and change.after[1].text == ""
    assert "1 documents and 1 queries" in caplog.text


def test_side_by_side_survives_its_file():
    runs, qrels, collection = two_arms()
    told = side_by_side(runs, qrels, collection, "RR", shown=2)
    written = json.loads(json.dumps(told.to_json()))
    assert SideBySide.from_json(written).to_json() == written
    assert [(c.before, c.after) for c in SideBySide.from_json(written).largest()] == [
        (c.before, c.after) for c in told.largest()
    ]
    assert SideBySide.from_json({}) is None and SideBySide.from_json(written | {"queries": []}) is None


def test_another_form_of_changes_is_refused_by_the_name_of_its_file(tmp_path):
    run_folder(tmp_path / "run")
    path = tmp_path / "run" / "changes.json"
    path.write_text(json.dumps({"before": "a", "after": "b", "changes": []}))
    with pytest.raises(DataError, match=r"changes\.json: these are not changes written by SideBySide\.to_json"):
        write_report(tmp_path / "run")


def test_what_is_too_long_loses_the_documents_of_the_queries_that_moved_least(caplog):
    runs, qrels, collection = two_arms()
    with caplog.at_level(logging.WARNING):
        told = side_by_side(runs, qrels, collection, "RR", shown=2, most_bytes=520)
    assert [(q.query_id, bool(q.documents)) for q in told.queries] == [("up", True), ("down", True), ("same", False)]
    assert "of 3 queries, the 1 that moved least are kept without their documents" in caplog.text
    whole = side_by_side(runs, qrels, collection, "RR", shown=2)
    assert [bool(q.documents) for q in whole.within(0).queries] == [False] * 3 and whole.within(0).texts == {}
    assert whole.within(whole.size() + 100) == whole


def test_arms_that_are_not_there_are_refused_with_the_nearest_name():
    runs, qrels, collection = two_arms()
    with pytest.raises(InputError, match=r"no arm 'befor' to compare; did you mean 'before'\?"):
        side_by_side(runs, qrels, collection, "RR", before="befor")
    with pytest.raises(InputError, match="at least 1 run"):
        side_by_side({}, qrels, collection)


def test_the_page_counts_means_over_seeds_and_says_whose_documents_it_shows(tmp_path):
    table = run_folder(tmp_path / "run", seeds=2)
    text, page = report_of(tmp_path / "run")
    told = json.loads(re.search(r'<script type="application/json" id="run-lists">(.*?)</script>', text, re.DOTALL)[1])
    assert told["arms"] == list(table.arms)
    for query_id, _, values, _ in told["queries"]:
        expected = [table.per_query[arm]["nDCG@10"][query_id] for arm in told["arms"]]
        assert values == pytest.approx(expected, abs=1e-6)
    assert "the documents are those of the first seed" in page.text


@pytest.mark.parametrize("end", ["</script>", "<!--", "<script>", "]]>", "\u2028"])
def test_nothing_in_a_text_ends_the_data_of_the_page(tmp_path, end):
    run_folder(tmp_path / "run", hostile=end)
    text, _ = report_of(tmp_path / "run")
    data = re.search(r'<script type="application/json" id="run-lists">(.*?)</script>', text, re.DOTALL)[1]
    assert "<" not in data and ">" not in data
    assert any(end in document for document, _ in json.loads(data)["documents"])


def test_words_of_the_query_are_marked_whatever_the_text_holds():
    assert str(marked("Cats & <b>dogs</b> in class, the CAT.", "what is the cat's class")) == (
        "<mark>Cats</mark> &amp; &lt;b&gt;dogs&lt;/b&gt; in <mark>class</mark>, the <mark>CAT</mark>."
    )
    assert str(marked("Ö über Öl", "Ö")) == "<mark>Ö</mark> über Öl" and str(marked("", "x")) == ""


def test_every_number_of_an_audit_is_told_with_its_meaning_and_newer_ones_are_not_lost():
    [found] = audits(
        {"m": {"lists": 4, "counted": 3, "headroom": 0.25, "brand_new": 1.5, "samples": 64, "advice": "Go"}}
    )
    rows = {row.title: (row.number, bool(row.meaning)) for row in found.rows}
    assert rows == {
        "Lists": ("4", True),
        "Headroom": (".250", True),
        "Counted": ("3", True),
        "Brand new": ("1.500", False),
    }
    assert found.settings == "rankings sampled of each list 64"
    known = {field.name for field in fields(Audit)} - {"reward", "graded", "by_list"}
    assert known == {*MEANINGS, "samples", "temperature", "saturated_from"}


BENCH = ["answer", "missing", "table", "forest", "speed", "published", "probes", "sets", "again"]


def test_a_bench_is_told_from_its_verdict_to_each_of_its_sets(tmp_path):
    found = bench_folder(tmp_path)
    _, page = report_of(tmp_path)
    assert page.open == [] and len(page.ids()) == len(set(page.ids()))
    assert [i for i in page.ids() if i in BENCH] == BENCH
    for sentence in found.said():
        assert sentence.claim in page.text
    assert page.text.index(found.said()[0].claim) < page.text.index("The numbers")
    assert (
        "gamma, wide on bm25 : it does not answer" in page.text and "wide on bm25 has no result on gamma" in page.text
    )
    for arm, cells in found.means.items():
        assert decimal(cells["nDCG@10"].mean) in page.text, arm
    lead = found.between("light on bm25", "bm25")
    assert f"{signed(lead.difference)} nDCG@10, light on bm25 against bm25" in page.text
    # 1,800 pairs in 3 + 4 + 5 seconds; medians of 80, 90 and 100 ms; no tie, 1 % and 2 %.
    assert "light on bm25 90 80 to 100 ms 200 ms 150 0.0 to 2.0 %" in page.text
    # Beta's published figure is .05 below ours.
    assert "+.050 !" in page.text and "https://example.org/figures" in page.text
    assert "typos two keyboard slips in the query" in page.text and "p .003, 40 % moved" in page.text
    assert {f"set-{name}" for name in SETS} <= set(page.ids()) and {f"{name}-lists" for name in SETS} <= set(page.ids())
    for expected in ("rerank bench", "9f2c", "commit abc123", "made of sand", "77aa", "a/folder"):
        assert expected in page.text


def test_the_forest_of_a_bench_holds_each_set_under_the_mean_and_a_drop_points_right(tmp_path):
    found = bench_folder(tmp_path)
    page = bench_page(tmp_path)
    light, wide = page["forests"]
    assert [row.arm for row in light.rows] == ["mean over sets", *SETS] and light.rows[0].whole
    assert [row.arm for row in wide.rows] == ["mean over sets", "alpha", "beta"]
    assert [row.difference for row in light.rows[1:]] == [found.by_set[name][0].difference for name in SETS]
    [probe] = page["probes"]
    assert [row.difference for row in probe.rows] == [0.05] * 3 and probe.rows[0].x > probe.zero
    assert probe.zero <= probe.rows[0].left < probe.rows[0].x < probe.rows[0].right


def test_a_hostile_bench_stays_text_and_leads_nowhere(tmp_path):
    for name, hostile in (("plain", ""), ("hostile", HOSTILE)):
        (tmp_path / name).mkdir()
        bench_folder(tmp_path / name, hostile=hostile)
    _, plain = report_of(tmp_path / "plain")
    text, page = report_of(tmp_path / "hostile")
    tags, expected = ([(tag, sorted(attrs)) for tag, attrs in p.tags if tag != "mark"] for p in (page, plain))
    assert page.open == [] and tags == expected and text.count("<script>") == 1
    results = json.loads((tmp_path / "plain" / "results.json").read_text())
    results["published"]["alpha"][0]["source"] = "javascript:alert(1)"
    (tmp_path / "plain" / "results.json").write_text(json.dumps(results))
    _, page = report_of(tmp_path / "plain")
    links = [a["href"] for tag, a in page.tags if tag == "a"]
    assert "javascript:alert(1)" in page.text and all(link.startswith(("#", "https://")) for link in links)


def test_a_bench_of_one_set_without_models_or_other_files_is_reported(tmp_path):
    qrels = {"q1": {"a": 1}, "q2": {"b": 1}}
    table = compare({"bm25": Run({"q1": (("a", 1.0),)})}, qrels, ["nDCG@10"], [])
    (tmp_path / "results.json").write_text(json.dumps(across("local", {"one": table}).to_json()))
    _, page = report_of(tmp_path)
    assert page.open == [] and "bm25 has no document for 1 judged query; it counts 0" in page.text
    assert "so not shown: summary.json." in page.text


def test_many_sets_together_keep_to_what_one_page_may_take(tmp_path, monkeypatch):
    bench_folder(tmp_path)
    monkeypatch.setattr("rerank.report.bench_page.MOST_BYTES", 9_000)
    text, _ = report_of(tmp_path)
    kept = [json.loads(d) for d in re.findall(r'<script type="application/json"[^>]*>(.*?)</script>', text, re.DOTALL)]
    told = [sum(bool(documents) for *_, documents in data["queries"]) for data in kept]
    assert len(told) == 3 and all(0 < n < 30 for n in told) and all(len(data["queries"]) == 30 for data in kept)
