"""Runs of a consortium: started, watched, stopped and gone on with, from one folder each."""
