"""All that runs inside a qube: only runtime, wire, errors, values, qdb and the standard library. Ships as a Debian package."""
