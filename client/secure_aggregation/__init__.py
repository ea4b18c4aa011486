"""A site's part in secure aggregation: what it remembers, what it refuses, what it masks."""
