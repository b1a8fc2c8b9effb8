"""The command line: its parser, its commands, what they read and what they print."""
