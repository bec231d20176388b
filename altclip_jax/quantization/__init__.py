"""Parameters in few bits: how codes are chosen, which parameters get them, the leaves they are, what files say."""
