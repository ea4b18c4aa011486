"""`foedus client check`: whether a site is fit to take part, and what would leave it."""
