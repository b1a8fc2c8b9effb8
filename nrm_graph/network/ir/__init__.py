"""The program: its nodes and operations, their checks, and the interpreter that runs them."""
