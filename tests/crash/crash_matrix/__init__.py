"""A cloud in one process that can be killed at any boundary of any operation, and what must hold afterwards."""
