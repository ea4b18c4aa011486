"""What every test starts from: no network, one thread, and draws that repeat."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch
from flwr.supercore.task_identity import TaskIdentity
from hypothesis import settings

settings.register_profile("reproducible", derandomize=True, deadline=None)
settings.load_profile("reproducible")


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """Sums come out in the same order, and tests do not fight over cores."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def _flower_task() -> None:
    """Flower's Message constructor asks which task runs in this process."""
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 0, 1, 0
