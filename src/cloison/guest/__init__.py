"""All that runs inside a qube. It imports only runtime, wire, errors, values and the standard library; it ships as a Debian package."""
