"""The conductor: owns a cell's database, drives its operations, listens to its hosts."""
