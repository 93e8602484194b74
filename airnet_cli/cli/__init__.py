"""The command line: each command is three moves: parse, one workflow call, render."""
