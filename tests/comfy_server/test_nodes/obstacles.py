"""What a user's workflow may hold that stands in the way of gradients, and what the tests need to see of the process."""

NODES = ()
