"""``assay doctor``: is everything here as it should be, and does the fast engine compute right on this machine?"""

from __future__ import annotations

import json
import os
import shlex
from dataclasses import asdict
from pathlib import Path
from typing import Any

import typer

from assay.benchmark.machine import machine, versions
from assay.commands import options
from assay.commands.tables import columns, line, plural, size
from assay.fetch.catalogue import catalogue
from assay.fetch.pull import default_folder
from assay.formats.errors import DIFFERENT
from assay.formats.system.cache_dir import cache_folder, programs_folder
from assay.self_check import Report, self_check

PACKAGES = ("assay", "scipy", "tokenizers", "jinja2", "typer", "rich", "gguf")
"""Beside those that ``machine`` names."""
OF_JAX = ("JAX_", "XLA_", "LIBTPU_", "TPU_", "CUDA_VISIBLE", "HIP_VISIBLE", "NPROC", "TF_CPP")
"""Beginnings of the environment variables that JAX and XLA look at."""


def command(as_json: options.Json = False) -> None:
    """Check the fast engine on the built-in model; show environment, devices, JAX settings, caches and models.

    Exit code 0: every check passed. 8: one failed, or the engine did not start.
    """
    report = self_check()
    found = {
        "passed": report.passed,
        "error": report.error or None,
        "checks": [asdict(check) for check in report.checks],
        "environment": machine() | versions(PACKAGES),
        "devices": list(report.devices),
        "fingerprint": dict(report.fingerprint),
        "jax_settings": {name: value for name, value in sorted(os.environ.items()) if name.startswith(OF_JAX)},
        "caches": caches(),
        "models": models(),
    }
    if as_json:
        typer.echo(json.dumps(found, ensure_ascii=False))
    else:
        print_all(found, report)
    if not report.passed:
        raise typer.Exit(DIFFERENT)


def caches() -> list[dict[str, Any]]:
    """What is kept between processes: name, folder, number of files, bytes, and the command that clears it."""
    folders = {"models": default_folder(), "compiled programs": programs_folder() or cache_folder("xla"),
               "noise floors": cache_folder("floors"), "second readings": cache_folder("readings")}  # fmt: skip
    found = []
    for name, folder in folders.items():
        sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()] if folder.is_dir() else []
        found.append({"name": name, "folder": str(folder), "files": len(sizes), "bytes": sum(sizes),
                      "clear": f"rm -r {shlex.quote(str(folder))}"})  # fmt: skip
    return found


def models() -> list[dict[str, Any]]:
    """The models of the catalogue, each with its path if it was pulled."""
    paths: dict[str, Path] = {entry.name: default_folder() / entry.filename for entry in catalogue().values()}
    return [{"name": name, "path": str(path) if path.exists() else None} for name, path in paths.items()]


def print_all(found: dict[str, Any], report: Report) -> None:
    """The report for people: the checks first."""
    columns(("check", "", "detail"), [(one.name, "PASS" if one.passed else "FAIL", one.detail)
                                      for one in report.checks], title="Self-check of the fast engine")  # fmt: skip
    if report.error:
        line(f"FAIL: {report.error}")
    line()
    settings = found["jax_settings"].items()
    rows = [*found["environment"].items(), *(("device", device) for device in found["devices"]),
            *((f"environment: {name}", value) for name, value in settings)]  # fmt: skip
    columns(("environment", ""), [(name, str(value)) for name, value in rows])
    if not settings:
        line("No environment variable changes JAX's settings.")
    line()
    columns(("cache", "holds", "to clear it"),
            [(one["name"], f"{plural(one['files'], 'file')}, {size(one['bytes'])}", one["clear"])
             for one in found["caches"]])  # fmt: skip
    line()
    columns(("model", "path"), [(one["name"], one["path"] or "not pulled") for one in found["models"]])
    line()
    line("Everything is in order." if report.passed else "The fast engine is not in order on this machine.")
