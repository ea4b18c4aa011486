"""Write report.json and report.html into the folder of a run."""

from __future__ import annotations

from pathlib import Path

from protocol.files import write_atomically
from simulations.experiment import Experiment
from simulations.report.html_report import render_html
from simulations.report.json_report import Report, build_report, report_bytes

JSON_NAME, HTML_NAME = "report.json", "report.html"


def write_report(experiment: Experiment, output_dir: Path) -> Report:
    """Write both files and return the report. The numbers are on disk before the page is drawn."""
    report = build_report(experiment)
    write_atomically(output_dir / JSON_NAME, report_bytes(report))
    write_atomically(output_dir / HTML_NAME, render_html(report).encode())
    return report
