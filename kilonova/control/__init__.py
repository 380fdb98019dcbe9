"""The control API: what operators ask of a running installation, served at `/control` to administrators."""
