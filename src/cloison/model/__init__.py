"""What a qube is: pure data and rules. Knows no clock, file, socket or driver."""
