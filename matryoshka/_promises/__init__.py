"""Promises about future rows and queries, for cascades and funnels.

Exact and betting tests, the walk from the safest plan to the cheapest one that passes, and the certificates that say
what was tested.
"""
