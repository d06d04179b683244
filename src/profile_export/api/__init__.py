"""A call comes in: gRPC servicers, one file per service."""
