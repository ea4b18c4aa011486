"""Secure aggregation, what both sides agree on: the coordinator learns a sum and nothing else.

Bonawitz et al. 2017 (https://doi.org/10.1145/3133956.3133982) with signed keys, and the sparse
graph of Bell et al. 2020 (https://doi.org/10.1145/3372297.3417885) for many sites. Everything in
here is pure: values and bytes in, values and bytes out; sessions are built upon it.

In the order of a session: `protocol.consortium` says who takes part, `transcript` what is signed
and bound, `graph` who masks with whom, `keys` and `shares` make and split the secrets, `ring` turns
an update into whole numbers, `masks` hides them.
"""
