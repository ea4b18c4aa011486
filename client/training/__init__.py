"""Local training at a site."""
