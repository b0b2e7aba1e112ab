"""The calls themselves, one module a family."""
