"""Names that are used in ways vulture cannot see. Each line says where."""
