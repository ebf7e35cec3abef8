"""The command line: ``itrd COMMAND``."""
