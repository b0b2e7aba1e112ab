"""Decides what an operation takes, as ordered steps with reasons. Touches nothing."""
