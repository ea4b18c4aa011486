"""Whether this machine can carry a site: room, memory, threads, accelerator, versions."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from client.doctor.findings import Check, Finding, fail, ok, warn
from client.runner.flower_version import require_flower
from client.site import Site

_GIB = 2**30
_DISK_WARN_GIB, _DISK_FAIL_GIB = 2.0, 0.1
_MEMORY_WARN_GIB = 2.0
_MEMORY_FILE = Path("/proc/meminfo")


def machine_checks(site: Site) -> tuple[Check, ...]:
    """All of them."""
    return (
        Check("disk", lambda: _disk(site)),
        Check("memory", _memory),
        Check("accelerator", _accelerator),
        Check("threads", lambda: _threads(site)),
        Check("versions", _versions),
    )


def _disk(site: Site) -> Iterator[Finding]:
    folder = next(p for p in (site.state_folder, *site.state_folder.parents) if p.exists())
    free = shutil.disk_usage(folder).free / _GIB
    text = f"{free:.1f} GiB free for {site.state_folder}"
    advice = "Make room: without it no receipt can be written, and then nothing leaves."
    if not os.access(folder, os.W_OK):
        text = f"{folder} cannot be written to by this account"
        yield fail("disk", text, "Give it to the account that the site runs under.")
    elif free < _DISK_FAIL_GIB:
        yield fail("disk", text, advice)
    elif free < _DISK_WARN_GIB:
        yield warn("disk", text, advice)
    else:
        yield ok("disk", text)


def _memory() -> Iterator[Finding]:
    if not _MEMORY_FILE.exists():
        yield warn("memory", "unknown on this system", "Look yourself: a site needs 2 GiB and up.")
        return
    lines = dict(line.split(":", 1) for line in _MEMORY_FILE.read_text().splitlines())
    free = int(lines["MemAvailable"].split()[0]) * 1024 / _GIB
    text = f"{free:.1f} GiB available"
    if free < _MEMORY_WARN_GIB:
        yield warn("memory", text, "Stop other programs, or use a smaller base model.")
    else:
        yield ok("memory", text)


def _accelerator() -> Iterator[Finding]:
    import torch

    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        name = torch.cuda.get_device_name()
        yield ok("accelerator", f"{name}, {free / _GIB:.1f} of {total / _GIB:.1f} GiB free")
    else:
        yield ok("accelerator", "no CUDA device: this site trains on the processor")


def _threads(site: Site) -> Iterator[Finding]:
    """What training under `foedus client up` will use, which sets it for its processes."""
    import torch

    chosen, cores = site.settings.threads, os.cpu_count() or 1
    threads = chosen or torch.get_num_threads()
    text = f"training uses {threads} threads on {cores} cores"
    if threads > cores:
        advice = "Set `threads` in site.yaml to the site's share: more than cores are slower."
        yield warn("threads", text, advice)
    else:
        yield ok("threads", text)


def _versions() -> Iterator[Finding]:
    require_flower()
    names = ("foedus", "flwr", "torch", "transformers", "peft")
    found = [f"{name} {metadata.version(name)}" for name in names]
    yield ok("versions", ", ".join([*found, f"Python {platform.python_version()}"]))
