"""What an experiment came to: report.json, a page to read and a table for the terminal.

`json_report` turns an Experiment into plain values; everything else reads those values alone, so
an old report.json can be shown again without the run that made it.
"""
