"""Every figure in the README: each module is a command that prints one JSON object as its last line."""
