"""One module for each promised figure, found by its name: ``prove()`` measures and returns a ``Verdict``."""
