"""qubesd: the live model, its store, its sockets, and the carrying out of plans."""
