"""The HTML report: self-contained, safe with hostile texts, and honest about what it was not given."""

import base64
import hashlib
import json
import logging
import random
import re
from html.parser import HTMLParser

import pytest

from rerank.errors import DataError, NotFound
from rerank.evaluation import changes_json, compare, largest_changes, write_report
from rerank.evaluation.drawing import curve, gains, plot, round_axis, spots, stages
from rerank.evaluation.findings import calibrations, diagnoses, forests, models_of
from rerank.evaluation.report import FILES
from rerank.evaluation.tables import Cell, Comparison, Table
from rerank.evaluation.wording import decimal
from rerank.types import Collection, Run

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(1)>\"'&"
SECTIONS = [
    "answer", "table", "stages", "gain", "queries", "changes", "audit", "diagnosis", "calibration", "training", "again",
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


def diagnosed(lift, **others):
    """One arm's diagnosis in the form in which training writes it."""
    return {
        "lists": 64,
        "greedy": 0.5 + lift,
        "expected": 0.4 + lift,
        "entropy_by_rank": [3.0 - 0.1 * r for r in range(10)],
        "kl": lift or None,
        "best_at": {str(2**i): 0.4 + lift + 0.03 * i for i in range(9)},
        "distinct_top": 120.5,
        "agreement": 0.62,
        "label_agreement": 0.31,
        "correlations": {"length": -0.12, "position": -0.4, "bm25": 0.5},
        "weights_changed": {"dtype": "float32", "tolerances": {"0": 0.9999, "1e-6": 0.415}},
        **others,
    }


CALIBRATED = {
    "kind": "affine",
    "a": 1.312,
    "b": -0.774,
    "n": 1800,
    "base_rate": 0.2134,
    "ece_before": 0.1432,
    "ece": 0.0211,
    "brier_before": 0.1833,
    "brier": 0.1322,
    "bins": [{"predicted": p / 10, "observed": p / 10, "count": 100} for p in range(1, 10)],
    "thresholds": [
        {"precision": 0.8, "threshold": 0.72, "recall": 0.335},
        {"precision": 0.95, "threshold": None, "recall": None},
    ],
}
AUDIT = {"lists": 43, "saturated": 0.125, "headroom": 0.422, "advice": "Refine: there is headroom."}


def run_folder(folder, queries=12, hostile="", leave_out=(), seconds=True, seeds=1):
    """A run folder made the way a run makes it, from made-up runs."""
    rng = random.Random(1)
    ids = [f"{hostile}q{i}" for i in range(queries)]
    qrels = {q: {f"{hostile}d{j}": int(j < 3) for j in range(20)} for q in ids}
    model = f"light{hostile}"
    noise = {"clone": 1.5, "refined": 0.3, "labels": 0.5, "random reward": 1.6}
    runs = {
        f"{model} {arm}": [
            Run.from_scores({q: {d: g + rng.gauss(0, s) for d, g in grades.items()} for q, grades in qrels.items()})
            for _ in range(seeds)
        ]
        for arm, s in noise.items()
    }
    clone, refined, labels, corrupted = runs
    collection = Collection(
        {f"{hostile}d{j}": f"text {j} {hostile}" for j in range(20)}, {q: f"what is {q}" for q in ids}
    )
    spent = {refined: 135.0} if seconds else None
    against = [(refined, clone), (refined, labels), (labels, clone), (corrupted, clone)]
    table = compare(runs, qrels, ["nDCG@10", "RR@10"], against, seconds=spent)
    changes = largest_changes(runs[clone][0], runs[refined][0], qrels, collection, n=3)
    steps = [
        {"model": model, "stage": "clone", "step": s, "loss": 1 / s, "unknown": [1], "nDCG@10": s / 50}
        for s in range(1, 41)
    ]
    files = {
        "table.json": json.dumps(table.to_json()),
        "changes.json": json.dumps(changes_json(changes, clone, refined)),
        "metrics.jsonl": "".join(json.dumps(s) + "\n" for s in steps),
        "diagnosis.json": json.dumps({"arms": {arm: diagnosed(0.05 * i) for i, arm in enumerate(runs)}}),
        "calibration.json": json.dumps({model: CALIBRATED}),
        "summary.json": json.dumps(
            {
                "title": f"A made-up run {hostile}",
                "command": f"rerank train recipe.toml {hostile}",
                "recipe": f"[data]\nid = 'made-up' {hostile}",
                "versions": {"rerank": "0.1.0"},
                "data": {f"test{hostile}": {"documents": 1200, "queries": 12, "judged": 12, "fingerprint": "9f2c"}},
                "notes": [f"a note {hostile}"],
                "groups": {clone: "main", refined: "main", labels: "control", corrupted: "corrupted"},
                "audit": {model: {**AUDIT, "advice": f"{AUDIT['advice']}{hostile}"}},
                "seeds": [0, 1],
                "seconds_total": 4000,
            }
        ),
    }
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        if name not in leave_out:
            (folder / name).write_text(content, encoding="utf-8")
    return table


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
    assert "Refine: there is headroom." in page.text and ".125 " in page.text and "43 " in page.text
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
    assert [tag for tag, _ in page.tags] == [tag for tag, _ in plain.tags]
    assert [sorted(attrs) for _, attrs in page.tags] == [sorted(attrs) for _, attrs in plain.tags]
    assert text.count("<script>") == 1 and "alert(1)" in page.text


def test_every_link_leads_somewhere_and_every_drawing_is_named(tmp_path):
    run_folder(tmp_path / "run")
    _, page = report_of(tmp_path / "run")
    links = [a["href"][1:] for tag, a in page.tags if tag == "a"]
    assert len(links) > 3 and set(links) <= set(page.ids())
    assert {f"change-{i}" for i in range(3)} <= set(links)
    for _, attrs in page.tags:
        assert attrs.get("role") not in ("img", "group") or attrs["aria-label"]
    assert {a["aria-labelledby"] for _, a in page.tags if "aria-labelledby" in a} <= set(page.ids())


@pytest.mark.parametrize(
    ("absent", "gone"),
    [
        ("changes.json", ["changes"]),
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
        ("changes.json", {"changes": 7}, r"changes\.json: "),
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
