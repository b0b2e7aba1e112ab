"""The Admin API served: a table of calls, the order of checks, and a module a family of calls."""
