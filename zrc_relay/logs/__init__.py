"""The program's log: every line has a stable name and known fields, at a bounded rate (R5.7, R6.7)."""
