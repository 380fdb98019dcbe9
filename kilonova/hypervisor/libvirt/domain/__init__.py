"""libvirt's description of a guest as typed declarations, one file per kind of device.

Each declaration is a frozen dataclass whose `element()` gives its XML. Nothing is ever put into XML as text by
formatting: values come from users, and the XML library is what keeps them values.
"""
