"""Which cells there are and in which one a server lives."""
