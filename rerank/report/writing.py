"""One HTML file that tells what a run found: the answer first, then what it rests on.

It is made from the files of a folder alone. A training run has `table.json` (needed), `diagnosis.json`,
`calibration.json`, `changes.json`, `metrics.jsonl` and `summary.json` (each optional; the report says which are
absent). A bench has `results.json` (needed), `summary.json` and `sets/SET/changes.json`. The page refers to nothing
outside itself, and its content security policy forbids it to: texts come from users' documents and are escaped, and
only the page's own script, named by its hash, may run. Links that a person may follow are the only addresses in it.
"""

from __future__ import annotations

import base64
import hashlib
import os
from pathlib import Path
from typing import Any

from rerank.errors import DataError, NotFound, RerankError
from rerank.evaluation.wording import decimal, p_value, signed
from rerank.report.bench_page import bench_page
from rerank.report.marking import marked
from rerank.report.run_files import DAMAGED, damage
from rerank.report.train_page import train_page


def write_report(folder: Path) -> Path:
    """The path of the `report.html` written into `folder`, a training run's or a bench's."""
    folder = Path(folder)
    if (folder / "results.json").is_file():
        template, content = "bench.html.j2", bench_page
    elif (folder / "table.json").is_file():
        template, content = "train.html.j2", train_page
    else:
        raise NotFound(
            f"{folder / 'table.json'} does not exist, and the report is made of it (that of a bench of results.json); "
            "evaluate the run first, or give the folder of another run"
        )
    try:
        page = _render(template, content(folder))
    except RerankError:
        raise
    except DAMAGED as error:
        raise DataError.at(folder, None, damage(error)) from error
    path, unfinished = folder / "report.html", folder / "report.html.partial"
    # A text may hold a lone surrogate, which UTF-8 cannot write; it is shown as its escape.
    unfinished.write_bytes(page.encode("utf-8", errors="backslashreplace"))
    os.replace(unfinished, path)
    return path


def _render(template: str, content: dict[str, Any]) -> str:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    # `tojson` escapes what could end its block or begin a comment in it; the rest may stay as it is written.
    environment.policies["json.dumps_kwargs"] = {"ensure_ascii": False, "separators": (",", ":"), "sort_keys": False}
    environment.filters.update(
        decimal=decimal,
        signed=signed,
        p_value=p_value,
        duration=duration,
        csp_hash=_csp_hash,
        whole=_whole,
        marked=marked,
    )
    try:
        return environment.get_template(template).render(**content)
    except jinja2.UndefinedError as error:
        raise ValueError(str(error)) from error


def _csp_hash(script: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(str(script).encode()).digest()).decode()


def _whole(text: str) -> str:
    """The text with its p-values kept from breaking across lines."""
    return text.replace("p < ", "p\u00a0<\u00a0").replace("p = ", "p\u00a0=\u00a0")


def duration(seconds: float) -> str:
    """Seconds as a person says them."""
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
