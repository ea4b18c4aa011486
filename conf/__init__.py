"""The Hydra configuration: one commented file for each choice."""
