"""The databases: connections, schemas, migrations and queries."""
