"""Every change to a server is an operation: one file each, telling its whole story."""
