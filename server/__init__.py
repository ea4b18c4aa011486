"""The coordinator: rounds, admission, checkpoints, evaluation, release."""
