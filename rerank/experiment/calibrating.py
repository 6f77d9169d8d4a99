"""After refinement: scores become probabilities, fitted on the dev lists and judged on the test lists."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from rerank.errors import InputError
from rerank.evaluation.calibration import calibration_json
from rerank.experiment.workspace import Workspace
from rerank.models.language.generative import AnyPolicy
from rerank.models.policy import ScorePolicy
from rerank.recipe import CalibrationChoice
from rerank.training.calibrate import Calibrate, labelled_scores
from rerank.types import CandidateList


def calibrate(
    work: Workspace,
    choice: CalibrationChoice,
    policy: AnyPolicy,
    dev: Sequence[CandidateList],
    test: Sequence[CandidateList],
) -> dict[str, Any] | None:
    """Fit the policy's probabilities on `dev`; how true they are on `test`. None where there is nothing to fit."""
    if choice.kind == "none" or not isinstance(policy, ScorePolicy):
        return None  # scores that only say an order mean nothing as probabilities
    try:
        Calibrate(kind=choice.kind, level=choice.level).run(policy, dev)
    except InputError as error:  # dev lists without a relevant candidate: the run goes on, and says so
        work.note(f"no calibration: {error}")
        return None
    assert policy.calibration is not None  # set by the line above
    found = labelled_scores(policy, test, choice.level)
    if not found.relevant.any():
        work.note("the calibration could not be judged: no test list holds a relevant candidate")
        return None
    probabilities = policy.calibration.probability(torch.from_numpy(found.served)).numpy()
    return calibration_json(policy.calibration.as_dict(), found.served, probabilities, found.relevant)
