"""The progress bars of other people's libraries: none while a model is loaded, which is soon over once it is there."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_bars() -> Iterator[None]:
    """Nothing; transformers shows no bar meanwhile. The hub's downloads, which may take long, keep theirs."""
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled
    from transformers.utils.logging import is_progress_bar_enabled

    if not is_progress_bar_enabled():
        yield
        return
    downloads = not are_progress_bars_disabled()
    _show_bars(False, downloads)
    try:
        yield
    finally:
        _show_bars(True, downloads)


def _show_bars(weights: bool, downloads: bool) -> None:
    """Nothing; shows transformers' bars from here on, or not, and the hub's, which transformers would take along."""
    from huggingface_hub.utils.tqdm import disable_progress_bars, enable_progress_bars
    from transformers.utils.logging import disable_progress_bar, enable_progress_bar

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # where HF_HUB_DISABLE_PROGRESS_BARS is set, the hub keeps to that and says so
        (enable_progress_bar if weights else disable_progress_bar)()
        (enable_progress_bars if downloads else disable_progress_bars)()
