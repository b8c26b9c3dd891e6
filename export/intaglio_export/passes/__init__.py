"""Graph edits, one per file, each with its pre- and postconditions."""
