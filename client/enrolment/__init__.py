"""A site's membership: its keys, its request to join, and the roster it keeps."""
