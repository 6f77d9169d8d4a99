"""Run the tests of the adapters whose frameworks are too large for everybody: LlamaIndex, MTEB, LangChain's old parts.

    python tests/clients/frameworks.py

Their environment, `.clients/frameworks`, lies over the one that runs this: torch and all that is there is used, what
`requirements/frameworks.txt` names is added. The exit status is that of pytest.
"""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from pathlib import Path

from run import ENVIRONMENTS, HERE

ROOT = HERE.parents[1]
WANTED = HERE / "requirements" / "frameworks.txt"
TESTS = ("llama_index", "mteb_adapter", "langchain", "rerankers_style", "serving_guide")


def environment() -> Path:
    """The python of the environment, made anew where the requirements changed."""
    folder = ENVIRONMENTS / "frameworks"
    python, made = folder / "bin" / "python", folder / "requirements.txt"
    if made.exists() and made.read_text() == WANTED.read_text():
        return python
    subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
    ask = "import sysconfig; print(sysconfig.get_path('purelib'))"
    inner = subprocess.run([python, "-c", ask], check=True, capture_output=True, text=True)
    Path(inner.stdout.strip(), "below.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    install = [python, "-m", "pip", "install", "--quiet", "-c", ROOT / "constraints.txt"]
    subprocess.run([*install, "-r", WANTED], check=True)
    # Again, though it lies below: what an editable install maps (Haystack's namespace) works in its own place alone.
    subprocess.run([*install, "--no-deps", "--force-reinstall", "-e", ROOT], check=True)
    made.write_text(WANTED.read_text())
    return python


def main() -> int:
    """The exit status of pytest."""
    files = [ROOT / "tests" / f"test_{name}.py" for name in TESTS]
    return subprocess.run([environment(), "-m", "pytest", "-n", "0", "-q", *files], cwd=ROOT, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
