"""A site: contracts in, a guarded adapter update out."""
