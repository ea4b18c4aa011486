from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.secure_aggregation import (
    FLOWER,
    FOEDUS,
    RoundShape,
    Workload,
    medians,
    result_of,
    round_seconds,
    upload_bytes,
)
from benchmarks.secure_aggregation_steps import SecretSeconds, VectorSeconds

# One second for every step, so that seconds count steps.
ONE_EACH = SecretSeconds(1, 1, 1, 1, 1, 1, 1, 1, bytes_once=10, bytes_per_neighbour=3)
VECTOR = VectorSeconds(1, 1, 1, 1, 1, bytes_up=100)


def test_a_round_counts_every_step_as_often_as_it_occurs() -> None:
    shape = RoundShape(num_sites=5, num_dropped=1, degree=4)
    seconds = round_seconds(shape, ONE_EACH, VECTOR, removed_per_dropped=4)
    # Each of 5 sites: keys, 4 signatures, one sharing, 4 boxes.
    assert seconds.share == 5 * (1 + 4 + 1 + 4)
    # Each of 4 survivors: rounding, 4 agreements, 4 pairwise masks and its own, packing.
    assert seconds.mask == 4 * (1 + 4 + 5 + 1)
    # 4 survivors sign and verify 4 signatures; 4 inputs, 4 self-masks opened and removed; one key
    # opened, its 4 masks agreed on and removed; the mean.
    assert seconds.unmask == 4 * (1 + 4) + 4 * 3 + 1 + 4 * 2 + 1
    assert seconds.total == seconds.share + seconds.mask + seconds.unmask


def test_upload_counts_the_input_and_what_each_neighbour_costs() -> None:
    assert upload_bytes(RoundShape(5, 0, 4), ONE_EACH, 100) == 100 + 10 + 4 * 3


def test_the_figure_is_the_least_ratio_of_all_shapes() -> None:
    slow = SecretSeconds(8, 8, 8, 8, 8, 8, 8, 8, bytes_once=10, bytes_per_neighbour=3)
    vectors = {
        1000: {FOEDUS: VECTOR, FLOWER: VectorSeconds(8, 8, 8, 8, 8, 100)},
        2000: {FOEDUS: VECTOR, FLOWER: VectorSeconds(4, 4, 4, 4, 4, 100)},
    }
    workload = Workload((5,), (1000, 2000), (0.0, 0.2), 1)
    result = result_of(workload, {5: {FOEDUS: ONE_EACH, FLOWER: slow}}, vectors)
    ratios = [float(row["times_less"] or 0) for row in result.rows if "times_less" in row]
    assert len(ratios) == 4
    assert result.figure == min(ratios) < 8
    assert ratios[0] == 8
    assert result.holds
    uploads = [row for row in result.rows if "upload_over_plain" in row]
    assert [(row["coordinates"], row["bits"]) for row in uploads] == [
        (size, bits) for size in (1000, 2000) for bits in (16, 20, 24, 32)
    ]
    # 1001 numbers of 2 bytes, and 22 bytes beside them, against 1000 of 2 bytes.
    assert uploads[0]["upload_over_plain"] == (2002 + 10 + 4 * 3) / 2000


def test_medians_are_taken_step_by_step() -> None:
    runs = [VectorSeconds(1, 5, 1, 1, 1, 7), VectorSeconds(3, 1, 1, 1, 1, 7)]
    runs.append(VectorSeconds(2, 3, 9, 1, 1, 7))
    assert medians(runs) == VectorSeconds(2, 3, 1, 1, 1, 7)


@pytest.mark.timeout(120)
def test_a_quick_run_measures_both_sides_and_writes_the_agreed_file(tmp_path: Path) -> None:
    out = tmp_path / "result.json"
    subprocess.run(
        [sys.executable, "-m", "benchmarks.secure_aggregation", "--quick", "--json", str(out)],
        cwd=Path(__file__).parents[2],
        check=True,
        capture_output=True,
    )
    read = json.loads(out.read_text(encoding="utf-8"))
    assert set(read) == {"name", "what", "figure", "unit", "goal", "holds", "rows", "machine"}
    assert (read["name"], read["unit"], read["goal"]) == ("secure_aggregation", "times", 5.0)
    rounds = [row for row in read["rows"] if "times_less" in row]
    assert [(row["sites"], row["dropped"]) for row in rounds] == [(5, 0), (5, 1)]
    for row in rounds:
        seconds = [value for key, value in row.items() if key.endswith("_s")]
        assert len(seconds) == 6
        assert all(value > 0 for value in seconds)
        assert row["flower_upload_mb"] > row["foedus_upload_mb"] > 0.4
    uploads = [row["upload_over_plain"] for row in read["rows"] if "bits" in row]
    assert len(uploads) == 4
    assert all(1 <= share <= 1.1 for share in uploads)
