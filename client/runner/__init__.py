"""A site's processes: a supervisor, Flower's SuperNode, and the runner that answers with the code
that the firm installed."""
