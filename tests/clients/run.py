"""Point real clients at a real server, each in an environment of its own, and print what each of them got.

    python tests/clients/run.py                       every client
    python tests/clients/run.py cohere-5 litellm      some
    python tests/clients/run.py --jobs 2 --lists      two at a time; also what each client raises for which status

An environment is made once, from `requirements/NAME.txt`, in `.clients/NAME` of the checkout, and again when that file
changes. The exit status is 0 where all passed, 1 where a check failed, 2 where a client could not be checked at all.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from servers import answered_in_process, running, write_models

HERE = Path(__file__).resolve().parent
ENVIRONMENTS = HERE.parents[1] / ".clients"
CLIENTS = {
    "curl": "use_curl.py",
    "cohere-5": "use_cohere.py",
    "cohere-7": "use_cohere.py",
    "voyageai": "use_voyageai.py",
    "infinity-client": "use_infinity_client.py",
    "litellm": "use_litellm.py",
    "langchain-cohere": "use_langchain_cohere.py",
    "langchain-community": "use_langchain_community.py",
    "llama-index": "use_llama_index.py",
    "haystack": "use_haystack.py",
    "rerankers": "use_rerankers.py",
    "huggingface-hub-0": "use_huggingface_hub_0.py",
    "huggingface-hub-2": "use_huggingface_hub_2.py",
    "openai": "use_openai.py",
}
"""Client -> its script; those without a file of requirements need no environment."""
CLIENT_SECONDS = 900
"""A client that takes longer is ended and counts as failed."""


class Finding(NamedTuple):
    """What came of one check."""

    client: str
    way: str
    check: str
    passed: bool
    said: str
    seconds: float


def environment(name: str, folder: Path) -> Path:
    """The python of a client's environment, made where it is not there or its requirements have changed."""
    requirements = HERE / "requirements" / f"{name}.txt"
    if not requirements.exists():
        return Path(sys.executable)
    python = folder / name / "bin" / "python"
    made, wanted = folder / name / "made-from", hashlib.sha256(requirements.read_bytes()).hexdigest()
    if not (made.exists() and made.read_text() == wanted):
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder / name)], check=True)
        install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
        subprocess.run([*install, "-r", str(requirements)], check=True)
        made.write_text(wanted)
    return python


def findings_of(name: str, python: Path, plan: Mapping[str, Any], folder: Path) -> list[Finding]:
    """What came of a client's checks; one that failed where its script did not end well."""
    own = {**plan, "findings": str(folder / f"{name}-findings.json")}
    (folder / f"{name}-plan.json").write_text(json.dumps(own), "utf8")
    log = folder / f"{name}.log"
    with open(log, "wb") as written:
        try:
            status: object = subprocess.run(
                [str(python), str(HERE / "scripts" / CLIENTS[name])],
                env=_surroundings(name, folder),
                stdin=subprocess.DEVNULL,
                stdout=written,
                stderr=subprocess.STDOUT,
                cwd=folder,
                timeout=CLIENT_SECONDS,
            ).returncode
        except subprocess.TimeoutExpired:
            status = f"none after {CLIENT_SECONDS} s"
    found = Path(own["findings"])
    findings = [Finding(name, **one) for one in json.loads(found.read_text("utf8"))] if found.exists() else []
    if status != 0:
        said = f"exit status {status}: {log.read_text('utf8', 'replace')[-1500:]}"
        findings.append(Finding(name, "", "the script", False, said, 0.0))
    return findings


def _surroundings(name: str, folder: Path) -> dict[str, str]:
    """The environment variables of a client: no key, no cache and no proxy of whoever runs this."""
    kept = {name: value for name, value in os.environ.items() if name in ("PATH", "LANG", "TMPDIR", "SSL_CERT_FILE")}
    offline = {"HAYSTACK_TELEMETRY_ENABLED": "False", "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    if not name.startswith("huggingface-hub"):  # which would reach no server at all
        offline["HF_HUB_OFFLINE"] = "1"
    return {
        **kept,
        **offline,
        "HOME": str(folder),
        "PYTHONPATH": str(HERE),
        "PYTHONUTF8": "1",
        "RERANK_CLIENT_CHECKS": str(folder / f"{name}-plan.json"),
    }


def checked(names: Sequence[str], jobs: int, environments: Path) -> list[Finding]:
    """What came of the checks of these clients, `jobs` of them at a time."""
    pythons = {}
    for name in names:  # one at a time: pip is the slowest where two of them share a disk
        print(f"environment of {name}", file=sys.stderr)
        pythons[name] = environment(name, environments)
    with tempfile.TemporaryDirectory(prefix="rerank-clients-") as made:
        folder = Path(made)
        models = write_models(folder)
        questions = answered_in_process(models)
        with running(models, folder) as servers, ThreadPoolExecutor(jobs) as pool:
            plan = {
                "servers": {name: server.plan for name, server in servers.items()},
                "processes": {name: server.process.pid for name, server in servers.items()},
                "questions": questions,
            }
            parts = pool.map(lambda name: findings_of(name, pythons[name], plan, folder), names)
            return [finding for part in parts for finding in part]


def table(findings: Sequence[Finding]) -> str:
    """A line for each way of each client: how many checks passed, the longest, and what failed."""
    groups: dict[tuple[str, str], list[Finding]] = {}
    for finding in findings:
        groups.setdefault((finding.client, finding.way), []).append(finding)
    widths = [max(len(key[i]) for key in groups) for i in (0, 1)]
    lines = []
    for (client, way), own in groups.items():
        passed = sum(finding.passed for finding in own)
        slowest = max(own, key=lambda finding: finding.seconds)
        longest = f"longest {slowest.seconds:5.1f} s ({slowest.check})"
        lines.append(f"{client:{widths[0]}}  {way:{widths[1]}}  {passed:2} of {len(own):2}  {longest}")
        lines += [f"    FAILED {finding.check}: {finding.said}" for finding in own if not finding.passed]
    passed, clients = sum(finding.passed for finding in findings), len({finding.client for finding in findings})
    return "\n".join([*lines, f"{passed} of {len(findings)} checks passed, {len(groups)} ways of {clients} clients"])


def raised(findings: Sequence[Finding]) -> str:
    """A Markdown table: what the user of each client gets to see for each status."""
    statuses = ("401", "404", "413", "422", "429", "503", "504")
    seen: dict[tuple[str, str], dict[str, str]] = {}
    for finding in findings:
        if finding.check in statuses:
            seen.setdefault((finding.client, finding.way), {})[finding.check] = finding.said if finding.passed else "?"
    lines = [f"| client | way | {' | '.join(statuses)} |", f"|---|---|{'---|' * len(statuses)}"]
    for (client, way), said in seen.items():
        lines.append(f"| {client} | {way} | {' | '.join(said.get(status, '') for status in statuses)} |")
    return "\n".join(lines)


def main() -> int:
    """The exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="CLIENT", help=f"of {', '.join(CLIENTS)}; all where none is named")
    parser.add_argument("--jobs", type=int, default=1, help="clients at a time (1)")
    parser.add_argument("--lists", action="store_true", help="also list what each client raises for which status")
    parser.add_argument("--environments", type=Path, default=ENVIRONMENTS, help="where the environments are made")
    given = parser.parse_args()
    unknown = [name for name in given.names if name not in CLIENTS]
    if unknown:
        parser.error(f"there is no client {', '.join(unknown)}; there are {', '.join(CLIENTS)}")
    try:
        findings = checked(given.names or list(CLIENTS), max(1, given.jobs), given.environments)
    except (subprocess.CalledProcessError, RuntimeError) as error:
        print(error, file=sys.stderr)
        return 2
    print(table(findings))
    if given.lists:
        print(raised(findings))
    return 0 if all(finding.passed for finding in findings) else 1


if __name__ == "__main__":
    sys.exit(main())
