"""The six properties of R11, each on hundreds of generated cases: ``docs/testing.md`` says which is where."""
