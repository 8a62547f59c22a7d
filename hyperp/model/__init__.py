"""The decoder: blocks of attention and MLP, dense or with experts, and the balance of the experts."""
