"""From contracts to what a model learns from."""
