"""The identity service of one-machine mode: the subset of the Keystone v3 API that common clients use."""
