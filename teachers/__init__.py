"""Teachers: whatever orders candidate lists, for a student to clone. Importing them loads no torch."""

from .fused import Fused
from .judged import Judged
from .memory import Remembered, read_orderings, write_orderings
from .recorded import Recorded
from .scored import Scored

__all__ = ["Fused", "Judged", "Recorded", "Remembered", "Scored", "read_orderings", "write_orderings"]
