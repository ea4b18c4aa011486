"""The coordinator as firms reach it: Flower's SuperLink behind a guard of its own."""
