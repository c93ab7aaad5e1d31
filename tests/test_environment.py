"""The lists of packages say the same thing: pyproject.toml, environment.yml and constraints.txt."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
CONDA_NAMES = {"torch": "pytorch", "build": "python-build", "playwright": "playwright-python"}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
ASKED_FOR_BY_THE_USER = {
    "torch",
    "jupyterlab",
    "matplotlib",
    "ipywidgets",
    "captum",
    "einops",
    "nbval",
}


@pytest.fixture
def requirements() -> dict[str, SpecifierSet]:
    """Name -> version range of every package that pyproject.toml names, extras included."""
    lines = PROJECT["dependencies"] + [
        x for extra in PROJECT["optional-dependencies"].values() for x in extra
    ]
    parsed = [Requirement(line) for line in lines]
    return {r.name: r.specifier for r in parsed if r.name != "wanviz"}


@pytest.fixture
def conda_requirements() -> dict[str, SpecifierSet]:
    """Name -> version range of every package in environment.yml but python and pip."""
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    *lines, from_pip = environment["dependencies"]
    parsed = [re.fullmatch(r"([a-z0-9-]+)(.*)", line).groups() for line in lines + from_pip["pip"]]
    return {
        name: SpecifierSet(versions) for name, versions in parsed if name not in {"python", "pip"}
    }


@pytest.fixture
def pins() -> dict[str, Version]:
    """Name -> the version that constraints.txt pins."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pairs = [line.split("==") for line in lines if not line.startswith("#")]
    return {canonicalize_name(name): Version(version) for name, version in pairs}


def test_environment_yml_names_the_packages_and_versions_of_pyproject(
    requirements, conda_requirements
):
    expected = {CONDA_NAMES.get(name, name): versions for name, versions in requirements.items()}
    assert conda_requirements == expected


def test_environment_yml_asks_for_the_same_python():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    assert f"python{PROJECT['requires-python']}" in environment["dependencies"]


def test_conda_packages_come_from_conda_forge_alone():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    assert environment["channels"] == ["conda-forge"]


def test_every_package_that_was_asked_for_is_named(requirements):
    assert ASKED_FOR_BY_THE_USER - requirements.keys() == set()


def test_constraints_pin_every_package_within_its_range(requirements, pins):
    outside = {
        n: str(pins.get(n)) for n, versions in requirements.items() if pins.get(n) not in versions
    }
    assert outside == {}


def test_constraints_are_plain_pins_that_hold_on_every_machine():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    assert [
        p for p in pins if not re.fullmatch(r"[A-Za-z0-9._-]+==[0-9.]+(?:rc\d+|post\d+)?", p)
    ] == []


def test_the_range_for_torch_is_open(requirements):
    assert "99.0" in requirements["torch"]
