"""Whole federations on one machine: partitions, experiments, comparisons, reports."""
