"""The stages: clone a teacher's orderings, refine against a reward, calibrate; one loop, kill-safe, selected on dev."""

from rerank.training.calibrate import Calibrate
from rerank.training.clone import Clone
from rerank.training.log import Log
from rerank.training.loop import Context, Dev
from rerank.training.refine import Refine

__all__ = ["Calibrate", "Clone", "Context", "Dev", "Log", "Refine"]
