"""Each test closes what it opens, and ends."""
from tests.descriptors import no_descriptor_left  # noqa: F401
from tests.patience import no_endless_wait  # noqa: F401
