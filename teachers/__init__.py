"""Teachers: whatever orders candidate lists, for a student to clone. Importing them loads no torch."""

from rerank.errors import EndpointError, OverBudget

from .chat import Chat
from .chat_settings import ChatSettings
from .fused import Fused
from .judged import Judged
from .ledger import Counts, Estimate
from .memory import Remembered, read_orderings, write_orderings
from .recorded import Recorded
from .scored import Scored

__all__ = [
    "Chat",
    "ChatSettings",
    "Counts",
    "EndpointError",
    "Estimate",
    "Fused",
    "Judged",
    "OverBudget",
    "Recorded",
    "Remembered",
    "Scored",
    "read_orderings",
    "write_orderings",
]
