"""Promises about rows and queries to come, which cascades and funnels share.

Exact and betting tests, the walk from the safest plan to the cheapest that passes one, and the certificates that say
what was tested.
"""
