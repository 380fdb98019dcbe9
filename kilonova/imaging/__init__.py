"""Disk-image files: what they are and whether they may be used, without trusting a byte of them."""
