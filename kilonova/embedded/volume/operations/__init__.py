"""The journaled operations of the volume service: one file tells one operation's whole story."""
