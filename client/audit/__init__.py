"""The leakage audit: what a trained adapter, or the wire, gives away about single matters.

Canaries (random strings that occur nowhere else) are made, a fair coin decides for each whether it
is planted among a site's matters, the site trains, and an attack scores every canary. How well
planted ones are told from those left out bounds from below what the training leaks. An audit can
find a leak; it can never prove that there is none.
"""
