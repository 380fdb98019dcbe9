"""What runs on a hypervisor host: steps for conductors, inventory, events. It reaches no database but its own."""
