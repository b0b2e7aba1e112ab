"""What a person sees in a window or a terminal of the host session: questions, and later the manager."""
