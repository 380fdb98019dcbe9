"""The data path on a Linux machine: one bridge and one DHCP server for each network, nftables for all filtering."""
