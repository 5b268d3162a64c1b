"""Reads the version of fedmslora."""

import tomllib
from importlib.metadata import PackageNotFoundError, version

from common.identity import ROOT


def installed_version() -> str:
    """Return the version of the installation, or of a checkout that is not installed."""
    try:
        return version("fedmslora")
    except PackageNotFoundError:
        text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
        return tomllib.loads(text)["project"]["version"]
