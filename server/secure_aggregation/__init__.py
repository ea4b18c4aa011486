"""The coordinator's part in secure aggregation: to relay, to sum, to take masks off the sum."""
