"""Consoles in a browser: the WebSocket proxy to screens and serial consoles, and the pages that use it."""
