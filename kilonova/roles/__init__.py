"""The processes of a cloud: what each is made of. In one-machine mode they are one process."""
