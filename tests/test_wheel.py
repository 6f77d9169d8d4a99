"""The wheel: what is in it, and that it works beside files of the user's own with the same names."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
SHIPPED = ("rerank", "rewards", "teachers")
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf8"))
SETUPTOOLS = SETTINGS["tool"]["setuptools"]


NAMESPACE = "haystack_integrations/components/rankers/rerank"
"""Where the wheel has what the checkout has in `IN_CHECKOUT`."""
IN_CHECKOUT = "rerank/integrations/haystack_namespace"


def files_of_the_checkout():
    """The files that git tracks or would track; in a copy without git, all files of the shipped folders."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    names = found.stdout.split("\0") if found.returncode == 0 else []
    names = names or [str(p.relative_to(ROOT)) for top in SHIPPED for p in (ROOT / top).rglob("*")]
    names = [n for n in names if n and (ROOT / n).is_file() and "__pycache__" not in n]
    return sorted({*names, "pyproject.toml", *(n for n in ("README.md", "LICENSE") if (ROOT / n).is_file())})


def folders_with_code():
    """Package name -> folder below the root, for each folder that holds Python files."""
    found = {}
    for top in SHIPPED:
        for folder in {path.parent for path in (ROOT / top).rglob("*.py")}:
            place = folder.relative_to(ROOT).as_posix().replace(IN_CHECKOUT, NAMESPACE)
            name = place.replace("/", ".")
            found[f"rerank.{name}" if top in ("rewards", "teachers") else name] = folder
    return found


def test_every_folder_with_code_is_a_package_of_the_project():
    assert sorted(SETUPTOOLS["packages"]) == sorted(folders_with_code())
    for folder in folders_with_code().values():
        assert (folder / "__init__.py").is_file(), folder.name


def needs_setuptools():
    import importlib.metadata

    try:
        version = importlib.metadata.version("setuptools")
    except importlib.metadata.PackageNotFoundError:
        version = "0"
    if int(version.split(".")[0]) < 77:
        pytest.skip(f"building needs setuptools>=77, here is {version}: pip install 'setuptools>=77'")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Path of a wheel built from a copy of the checkout, by the build backend that pyproject.toml names."""
    needs_setuptools()
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for name in files_of_the_checkout():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, source / name)
    for name in {SETTINGS["project"].get("readme"), *SETTINGS["project"].get("license-files", [])} - {None}:
        (source / name).touch()  # a checkout under way may lack them; they are no part of what is tested here
    backend = SETTINGS["build-system"]["build-backend"]
    program = f"import sys, {backend} as backend; backend.build_wheel(sys.argv[1])"
    done = subprocess.run(
        [sys.executable, "-c", program, str(out)], cwd=source, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    [built] = out.glob("*.whl")
    return built


def test_the_wheel_has_one_top_level_name_beside_its_metadata_and_haystacks_namespace(wheel):
    with zipfile.ZipFile(wheel) as archive:
        top = {name.split("/")[0] for name in archive.namelist()}
    project = SETTINGS["project"]
    assert top == {"rerank", "haystack_integrations", f"{project['name']}-{project['version']}.dist-info"}


def test_the_wheel_holds_every_module_and_data_file_of_the_packages_and_no_other(wheel):
    with zipfile.ZipFile(wheel) as archive:
        inside = {name for name in archive.namelist() if ".dist-info/" not in name}
    expected = set()
    for name in files_of_the_checkout():
        top, _, rest = name.partition("/")
        if top in SHIPPED and Path(name).suffix in (".py", ".toml", ".j2", ".html", ".typed"):
            expected.add(name.replace(IN_CHECKOUT, NAMESPACE) if top == "rerank" else f"rerank/{top}/{rest}")
    assert inside == expected
    assert {"rerank/py.typed", "rerank/rewards/ranking.py", "rerank/teachers/judged.py"} <= inside
    assert {Path(name).suffix for name in inside} == {".py", ".toml", ".j2", ".html", ".typed"}


def test_the_installed_package_ignores_a_users_files_of_the_same_names(wheel, tmp_path):
    installed, theirs = tmp_path / "installed", tmp_path / "theirs"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(installed)
    theirs.mkdir()
    for name in ("rewards.py", "teachers.py", "benchmarks.py"):
        (theirs / name).write_text(f"raise RuntimeError('{name} of the user was imported')\n", encoding="utf8")
    program = (
        "import sys; sys.path[:0] = ['', sys.argv[1]]\n"
        "import rerank, rerank.rewards, rerank.teachers, rerank.composition\n"
        "print(rerank.__file__, *rerank.__path__, rerank.rewards.__file__, rerank.teachers.__file__, sep='\\n')\n"
        "print(rerank.composition.reward_named('nDCG@10').name)\n"
        "try:\n    import rewards\nexcept RuntimeError as error:\n    print(error)\n"
    )
    clean = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", program, str(installed)], cwd=theirs, capture_output=True, text=True, env=clean
    )
    assert done.returncode == 0, done.stderr[-2000:]
    package = installed / "rerank"
    assert done.stdout.splitlines() == [
        str(package / "__init__.py"),
        str(package),  # one entry: the fallback for a checkout is off
        str(package / "rewards" / "__init__.py"),
        str(package / "teachers" / "__init__.py"),
        "nDCG@10",
        "rewards.py of the user was imported",
    ]
