"""How long a test waits before it fails: whatever takes longer hangs. Slow machines fail no test, so this measures no speed."""
PATIENCE = 30.0            # seconds
