"""From tensor to plane and from plane to CTUs."""
