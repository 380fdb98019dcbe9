"""The embedded network service: a subset of the Network API v2.0 over Linux bridges, dnsmasq and nftables."""
