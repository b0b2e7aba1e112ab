"""Each test closes what it opens."""
from tests.descriptors import no_descriptor_left  # noqa: F401
