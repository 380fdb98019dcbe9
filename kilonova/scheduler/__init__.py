"""Scheduling: which host takes a server. The view of the hosts, filters, weighers, and the decision."""
