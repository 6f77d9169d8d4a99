"""benchmarks/speed.py on tiny random weights and a few made-up texts: both sides do the same work."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "speed.py"


def run(*arguments):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(SCRIPT), "--tiny", "--threads", "1", "--device", "cpu", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_both_sides_of_the_speed_script_give_the_same_scores_and_parts_are_merged(tmp_path):
    place = tmp_path / "speed.json"
    place.write_text(json.dumps({"ratios": {"memory": {"long / short": 1.5}}, "memory": {"date": "2026-01-01"}}))
    ratios = run("--only", "predict", "--out", str(place))
    found = json.loads(place.read_text())
    assert ratios["memory"] == {"long / short": 1.5}  # what was measured before is still there
    assert found["memory"] == {"date": "2026-01-01"}
    assert found["ratios"]["predict"] == pytest.approx(ratios["predict"], abs=1e-4)
    for task in ("trec_dl", "scifact"):
        sides = found["predict"][task]["sides"]
        assert sides["ours float32"]["largest score difference"] < 1e-5
        assert sides["ours float32"]["nDCG@10 delta"] == 0
        # Nothing is padded here; sentence-transformers counts the same true tokens and pads them.
        assert sides["ours float32"]["computed tokens a true token"] == 1
        assert sides["sentence-transformers float32"]["computed tokens a true token"] >= 1


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("datasets") is None, reason="CrossEncoderTrainer needs datasets")
def test_both_sides_of_the_speed_script_train_on_the_same_tokens(tmp_path):
    place = tmp_path / "speed.json"
    run("--only", "train", "--out", str(place))
    for name, work in json.loads(place.read_text())["train"].items():
        if name.startswith(("lambda", "listnet")):
            sides = work["sides"]
            assert sides["ours float32"]["tokens with graph"] == work["true tokens"]
            assert sides["sentence-transformers float32, default"]["tokens with graph"] >= work["true tokens"]
            assert sides["sentence-transformers float32, default"]["tokens without graph"] == 0
