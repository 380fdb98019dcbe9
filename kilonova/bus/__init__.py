"""The message bus: in-process and NATS behind one interface."""
