"""What the compute service needs of other services, as small typed protocols."""
