"""A run's Hydra overrides: how the coordinator's ServerApp comes by them.

Flower sends a run's configuration to every site. So a consortium's run is named there and no more,
and the ServerApp reads its overrides, which tell of the coordinator's disk, from the run's folder.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from protocol.errors import FoedusError, SettingsError
from server.consortium.folder import ConsortiumFolder
from server.runs.folder import RunFolder, run_folder

# Set for the ServerApp by the coordinator that starts it.
CONSORTIUM_VARIABLE = "FOEDUS_CONSORTIUM"
RUN_KEY, RESUME_KEY = "run", "resume"
# In place of those two, where a SuperLink of one's own has no consortium's folder.
OVERRIDES_KEY = "overrides"


def run_words(config: Mapping[str, object], environment: Mapping[str, str]) -> list[str]:
    """The overrides of the run with this Flower configuration.

    Errors: SettingsError; FoedusError where it names a run that is not there, or is not to begin.
    """
    name = str(config.get(RUN_KEY, ""))
    if not name:
        text = str(config.get(OVERRIDES_KEY, ""))
        try:
            return shlex.split(text)
        except ValueError as error:
            raise SettingsError("the run's overrides", [f"{error}: {text}"]) from error
    if CONSORTIUM_VARIABLE not in environment:
        raise FoedusError(
            f"Expected {CONSORTIUM_VARIABLE} to name the consortium's folder for run {name}, got "
            "nothing. Start the coordinator by `foedus server up`."
        )
    consortium = ConsortiumFolder(Path(environment[CONSORTIUM_VARIABLE]))
    run = run_folder(consortium.runs, name)
    record = run.read()
    if not record.status.is_open:
        # Such as one that Flower took and whose number never arrived: it counts as not started.
        raise FoedusError(
            f"Run {name} is {record.status}, so nothing begins. `foedus server resume {name}` goes "
            "on with it."
        )
    return consortium_words(consortium, run, record.overrides, bool(config.get(RESUME_KEY)))


def consortium_words(
    consortium: ConsortiumFolder, run: RunFolder, overrides: Sequence[str], resume: bool
) -> list[str]:
    """A run's own overrides, and those that the consortium's folder gives."""
    given = {
        "output_dir": str(run.path.resolve()),
        "roster": str(consortium.roster.resolve()),
        "nodes_file": str(consortium.nodes.resolve()),
    }
    words = [f"coordinator.{key}={_quoted(value)}" for key, value in given.items()]
    return [*overrides, *words, f"coordinator.resume={str(resume).lower()}"]


def _quoted(path: str) -> str:
    """A path as a Hydra value, whatever characters it has."""
    # To Hydra, a backslash means itself unless a quote follows.
    escaped = re.sub(r"(\\*)('|$)", r"\1\1\\\2", path).removesuffix("\\")
    return f"'{escaped}'"
