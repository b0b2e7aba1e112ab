"""File copy between qubes: what sends a stream of files (`pack`) and what receives it (`unpack`). Ships on both sides."""
