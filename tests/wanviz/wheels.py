"""Packages that a test wants beside the installed ones, or in their place."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest


def unpacked(requirement: str, target: Path) -> Path:
    """A folder with the one wheel of a requirement in it; where it cannot be fetched, CI fails and others skip."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    done = subprocess.run(
        [*command, "--only-binary", ":all:", requirement, "--dest", str(target)],
        capture_output=True,
        text=True,
    )
    if done.returncode:
        reason = f"pip cannot fetch {requirement}: {done.stderr.strip()[-200:]}"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    (wheel,) = target.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(target)
    return target
