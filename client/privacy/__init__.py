"""A site's own privacy: what noisy training costs, whom it is charged to, the ledger of both."""
